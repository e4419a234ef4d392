// The shell: navigation, the address after #, the theme, the API key, and the page that is shown.
import { connection } from "./resource.js";
import { html, render, useEffect, useState } from "./html.js";
import { get, key } from "./api.js";
import { Badge } from "./parts.js";
import { KeyDialog } from "./key.js";

const PAGES = [
  ["fleet", "Fleet"], ["queues", "Queues"], ["tasks", "Tasks"], ["workflows", "Workflows"], ["approvals", "Approvals"],
  ["threads", "Threads"], ["handoffs", "Handoffs"], ["dead-letters", "Dead letters"], ["schedules", "Schedules"],
  ["locks", "Locks"], ["breakers", "Breakers"], ["scorecard", "Scorecard"], ["events", "Events"],
  ["architecture", "Architecture"], ["docs", "HTTP API"],
];

const address = () => {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/").map(decodeURIComponent);
  return { page: page || "fleet", rest, search: new URLSearchParams(search) };
};

function useAddress() {
  const [at, setAt] = useState(address());
  useEffect(() => {
    const moved = () => setAt(address());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return at;
}

function usePage(name) {
  const [loaded, setLoaded] = useState({});
  useEffect(() => {
    const known = PAGES.some(([id]) => id === name) ? name : "lost";
    import(`../pages/${known}.js`).then((module) => setLoaded({ name, Page: module.default }));
  }, [name]);
  return loaded.name === name ? loaded.Page : null;
}

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("coditect.theme") ?? "system");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("coditect.theme", theme);
  }, [theme]);
  return html`<label class="theme"><span>Theme</span><select value=${theme} onChange=${(event) => setTheme(event.target.value)}>
    <option value="system">as the system</option><option value="light">light</option><option value="dark">dark</option></select></label>`;
}

function Connection() {
  const [state, setState] = useState(connection.state);
  useEffect(() => {
    connection.told = setState;
    return () => (connection.told = () => {});
  }, []);
  const note = state === "live" ? "Events arrive as they happen" : "No stream of events: asked again every few seconds";
  return html`<span class="connection"><${Badge} state=${state} note=${note} /></span>`;
}

function Navigation({ page, open }) {
  return html`<nav id="pages" aria-label="Pages" class=${open ? "open" : ""}><ul>${PAGES.map(
    ([id, name]) => html`<li key=${id}><a href=${`#/${id}`} aria-current=${page === id ? "page" : undefined}>${name}</a></li>`,
  )}</ul><div class="foot"><${Connection} /><${Theme} /></div></nav>`;
}

function Shell() {
  const { page, rest, search } = useAddress();
  const Page = usePage(page);
  const [open, setOpen] = useState(false);
  const [asked, setAsked] = useState(false);
  const [again, setAgain] = useState(0);
  useEffect(() => {
    const refused = (event) => event.reason?.status === 401 && setAsked(true);
    addEventListener("unhandledrejection", refused);
    get("/v1/agents?limit=1").catch((problem) => problem.status === 401 && setAsked(true));
    return () => removeEventListener("unhandledrejection", refused);
  }, [again]);
  useEffect(() => {
    setOpen(false);
    document.title = `${PAGES.find(([id]) => id === page)?.[1] ?? "Lost"} · Coditect`;
  }, [page]);
  useEffect(() => {
    if (Page) document.querySelector("main h1")?.focus({ preventScroll: true });
  }, [Page, rest.join("/")]);
  const shown = page === "docs" ? "" : rest[0] ?? ""; // a link to an operation leaves the reference as it stands
  const entered = () => (setAsked(false), setAgain(again + 1));
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.querySelector("main").focus())}>
      Skip to the page</a>
    <header class="bar"><a class="brand" href="#/fleet"><img src="icon.svg" alt="" width="24" height="24" />Coditect</a>
      <button type="button" class="menu" aria-expanded=${open ? "true" : "false"} aria-controls="pages" onClick=${() => setOpen(!open)}>Menu</button></header>
    <${Navigation} page=${page} open=${open} />
    <main id="main" tabindex="-1">${Page ? html`<${Page} key=${`${page}/${again}/${shown}`} rest=${rest} search=${search} />` : html`<p class="wait" role="status">Loading …</p>`}</main>
    ${asked && html`<${KeyDialog} entered=${entered} />`}
    ${key.get() && html`<button type="button" class="forget" onClick=${() => (key.set(""), setAgain(again + 1))}>Forget the API key</button>`}`;
}

performance.mark("coditect-start");
render(html`<${Shell} />`, document.getElementById("app"));
