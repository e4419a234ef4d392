"""The listing of a fleet's A2A tasks, page by page: by context, by state, with or without their values."""

from __future__ import annotations

from a2a.types.a2a_pb2 import ListTasksRequest, ListTasksResponse, Task
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE, MAX_LIST_TASKS_PAGE_SIZE

from coditect.client.client import Client
from coditect.client.durable import durable_id
from coditect.client.listings import WORKFLOWS, run_conditions
from coditect.errors import InputError
from coditect.integrations.a2a.serving.reading import whole_task
from coditect.integrations.a2a.serving.tasks import CONTEXT, KIND, STATES, state_of, task_of
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.rows import WorkflowRow


async def list_tasks(client: Client, request: ListTasksRequest) -> ListTasksResponse:
    """Return a page of the tasks that A2A clients sent and that fit the request's conditions, the latest sent first.

    A page may be short, or empty, before the last one: the state is compared after a page is read. The total is that of
    the page, since the control plane does not count. Once the tasks of a page have 1 MiB, the others have no values.

    Raises:
        InputError: when the page's size or token is wrong.
    """
    size = request.page_size if request.HasField("page_size") else DEFAULT_LIST_TASKS_PAGE_SIZE
    if not 1 <= size <= MAX_LIST_TASKS_PAGE_SIZE:
        raise InputError("A page has 1 to 100 tasks", page_size=size, fix="pageSize: 50")
    labels = {**KIND} | ({CONTEXT: request.context_id} if request.context_id else {})
    since = None
    if request.HasField("status_timestamp_after"):
        since = request.status_timestamp_after.ToMilliseconds()
    page = await client.page(WORKFLOWS, run_conditions(labels=labels), cursor=request.page_token or None, limit=size)
    rows = [row for row in page.items if _fits(row, request.status, since)]
    tasks, room = list[Task](), MAX_BODY_BYTES if request.include_artifacts else 0
    for row in rows:
        tasks.append(await whole_task(client.task(durable_id(row.workflow)), row) if room > 0 else task_of(row))
        room -= tasks[-1].ByteSize()
    return ListTasksResponse(tasks=tasks, next_page_token=page.next or "", page_size=size, total_size=len(tasks))


def _fits(row: WorkflowRow, state: A2aState, since_ms: int | None) -> bool:
    if state != A2aState.TASK_STATE_UNSPECIFIED and STATES[state_of(row)] != state:
        return False
    changed_ms = row.finished_at_ms or row.accepted_at_ms or 0
    return since_ms is None or changed_ms >= since_ms
