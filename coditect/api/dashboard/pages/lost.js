import { html } from "../src/html.js";
import { Empty, Title } from "../src/parts.js";

export default function Lost() {
  return html`<${Title}>There is no such page<//><${Empty}>Choose one in the navigation.<//>`;
}
