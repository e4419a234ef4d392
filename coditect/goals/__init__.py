"""Goals: a sentence becomes a plan, a plan becomes a workflow, and a workflow that fails a new plan, within bounds.

`plan` checks what a planner answers, `planner` is the port, `chat` asks a language model,
`pursuit` plans, runs and plans again, `runs` finds what was started before, `task_runs` does so for a goal that is a
task, `share` bounds a goal within a goal, and `agent` is the agent that offers `goal.pursue`.
"""
