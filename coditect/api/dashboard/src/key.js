// Asks for an API key; it is kept in this tab's session storage alone.
import { get, key } from "./api.js";
import { html, useEffect, useRef } from "./html.js";
import { Field, ProblemNote } from "./parts.js";
import { useAction } from "./resource.js";

export function KeyDialog({ entered }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  const action = useAction(async (value) => {
    key.set(value);
    try {
      await get("/v1/agents?limit=1");
    } catch (problem) {
      if (problem.status === 401) {
        key.set("");
        throw problem;
      }
    }
    dialog.current.close();
    entered();
  });
  const submit = (event) => {
    event.preventDefault();
    action.run(new FormData(event.target).get("key").trim());
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}><form onSubmit=${submit}>
    <h2 id="key-title">This API wants a key</h2>
    <${Field} label="API key" note="Kept in this tab until it is closed.">
      ${(id) => html`<input id=${id} name="key" type="password" autocomplete="off" required autofocus />`}<//>
    <${ProblemNote} problem=${action.problem} />
    <div class="actions"><button type="submit" class="main" disabled=${action.busy}>Enter</button></div></form></dialog>`;
}
