// The one place that joins the libraries: templates by htm, rendered by preact.
import { h, render, Fragment } from "../vendor/preact.mjs";
import { useCallback, useEffect, useId, useMemo, useRef, useState } from "../vendor/hooks.mjs";
import htm from "../vendor/htm.mjs";

export const html = htm.bind(h);
export { render, Fragment, useCallback, useEffect, useId, useMemo, useRef, useState };
