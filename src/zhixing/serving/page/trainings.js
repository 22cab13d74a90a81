/** The training runs of the server's folder: where each stands, and the curves of those that are chosen, as they grow. */
import { ask, Trouble } from "./api.js";
import { curves, legend } from "./curve.js";
import { el } from "./dom.js";
import { codeBox, troubleBox } from "./parts.js";
import { number, say, sayAttribute, saying } from "./words.js";

const PATH = "/v1/trainings";
const OFTEN = 2000; // milliseconds
const MOST = 6; // runs laid over each other
const STATES = { running: "running", done: "finished", stopped: "halted" };
const TIMES = { left: ["left_seconds", "left_minutes", "left_hours"], took: ["took_seconds", "took_minutes", "took_hours"] };

export function trainings() {
  const box = troubleBox();
  const code = codeBox();
  const list = el("ul", { class: "runs" });
  const none = saying("p", { class: "note", hidden: true }, "no_runs");
  const most = saying("p", { class: "note", hidden: true }, "most_runs", { n: MOST });
  const frame = el("div", { class: "frame", tabindex: "0", role: "group", pointermove: (event) => pointed(event), pointerleave: () => tell(null), blur: () => tell(null), keydown: (event) => moved(event) });
  sayAttribute(frame, "aria-label", "curve");
  const keys = el("p", { class: "keys" });
  const values = el("div", { class: "values", role: "status" }); // of the step that is pointed at
  const table = sayAttribute(el("div", { class: "scroll", tabindex: "0", role: "group" }), "aria-label", "last_values");
  const out = el("section", { class: "out", hidden: true }, saying("h2", {}, "losses"), keys, frame, values, table, saying("p", { class: "note" }, "losses_note"));
  const hint = saying("p", { class: "note", hidden: true }, "choose_run");
  const rows = new Map(); // of a run's id: {node, check, state, stands, card}
  const chosen = new Map(); // {slot, training, heldout, version, next, seen}
  let order = "";
  let picture = null;
  let cursor = null; // the step that is told
  let control = null;
  let drawn = "";
  const timer = setInterval(() => poll(), OFTEN);

  const visible = () => !document.hidden && root.getClientRects().length > 0;

  async function poll() {
    if (control !== null || !visible()) return;
    control = new AbortController();
    try {
      const { data } = await ask(PATH, undefined, control.signal);
      listed(data);
      let trouble = null;
      for (const [id, run] of chosen) {
        try {
          await grown(id, run, control.signal);
        } catch (error) {
          if (!(error instanceof Trouble) || error.kind === "wrong_key") throw error;
          trouble ??= error; // the others are still drawn
        }
      }
      draw();
      if (trouble === null) box.clear();
      else box.show(trouble, poll);
    } catch (error) {
      if (error.name !== "AbortError") box.show(error, poll);
      if (error instanceof Trouble && error.kind === "wrong_key") clearInterval(timer);
    } finally {
      control = null;
    }
  }

  function listed(cards) {
    const first = rows.size === 0 && cards.length > 0;
    for (const card of cards) {
      if (!rows.has(card.id)) rows.set(card.id, row(card.id));
      shown(rows.get(card.id), card);
    }
    const known = new Set(cards.map(({ id }) => id));
    for (const [id, { node }] of rows) {
      if (known.has(id)) continue;
      node.remove();
      rows.delete(id);
      if (chosen.has(id)) choose(id, false);
    }
    const now = JSON.stringify([...known]);
    if (now !== order) list.append(...cards.map(({ id }) => rows.get(id).node)); // who holds the keyboard is moved seldom
    order = now;
    none.hidden = cards.length > 0;
    if (first) {
      const { id } = cards.find(({ step }) => step !== null) ?? cards[0];
      rows.get(id).check.checked = true;
      choose(id, true);
    }
  }

  function row(id) {
    const check = el("input", { type: "checkbox", change: () => (choose(id, check.checked), poll()) });
    const badge = el("span", { class: "badge" });
    const state = el("span", { class: "state" });
    const stands = el("span", { class: "note" });
    const bar = el("progress", { max: 1, "aria-hidden": "true" });
    const node = el("li", {}, el("label", {}, check, badge, el("span", { class: "name", dir: "auto" }, id), state), stands, bar);
    return { node, check, badge, state, stands, bar, card: null };
  }

  function shown(run, card) {
    const { node, state, stands, bar } = run;
    run.card = card;
    say(state, STATES[card.state]);
    node.className = card.state;
    state.className = `state ${card.state}`;
    const parts = [];
    if (card.step === null) parts.push(["not_begun", {}]);
    else parts.push(card.max_steps === null ? ["at_step_only", { a: number(card.step) }] : ["at_step", { a: number(card.step), b: number(card.max_steps) }]);
    if (card.seconds_left !== null) parts.push(lasting("left", card.seconds_left));
    else if (card.seconds !== null) parts.push(lasting("took", card.seconds));
    stands.replaceChildren(...parts.flatMap(([key, given], n) => [n > 0 ? " · " : "", saying("span", {}, key, given)]));
    bar.hidden = card.step === null || card.max_steps === null || card.state === "done";
    if (!bar.hidden) bar.value = Math.min(1, card.step / card.max_steps);
  }

  function choose(id, wanted) {
    if (wanted) {
      const taken = new Set([...chosen.values()].map(({ slot }) => slot));
      const slot = [1, 2, 3, 4, 5, 6].find((n) => !taken.has(n));
      if (slot !== undefined) chosen.set(id, { slot, ...nothing() });
    } else {
      chosen.delete(id);
    }
    for (const [other, { check, badge }] of rows) {
      check.disabled = chosen.size >= MOST && !chosen.has(other);
      badge.textContent = chosen.has(other) ? String(chosen.get(other).slot) : "";
      badge.className = chosen.has(other) ? `badge c${chosen.get(other).slot}` : "badge";
    }
    most.hidden = chosen.size < MOST;
    code.done([{ path: PATH }, ...[...chosen.keys()].map((each) => ({ path: `${PATH}/${encodeURIComponent(each)}?start=0` }))]);
    draw();
  }

  /** What a run has measured since it was last asked; all of it anew where its file is another one. */
  async function grown(id, run, signal) {
    const card = rows.get(id)?.card;
    const now = JSON.stringify([card?.state, card?.step, card?.updated]);
    if (run.seen === now && card?.state !== "running") return;
    for (let more = true; more;) {
      const found = await ask(`${PATH}/${encodeURIComponent(id)}?start=${run.next}`, undefined, signal);
      if (run.next > 0 && (found.version !== run.version || found.next < run.next)) {
        Object.assign(run, nothing());
        continue;
      }
      for (const line of found.lines) {
        if (!Number.isFinite(line.step)) continue;
        if (Number.isFinite(line.loss)) run.training.push([line.step, line.loss]);
        if (Number.isFinite(line.eval_loss)) run.heldout.push([line.step, line.eval_loss]);
      }
      [run.version, run.next, more] = [found.version, found.next, found.more];
      if (more) draw();
    }
    run.seen = now;
  }

  function draw() {
    const width = Math.floor(frame.clientWidth || root.clientWidth);
    const runs = [...chosen].filter(([, run]) => run.training.length + run.heldout.length > 0);
    hint.hidden = chosen.size > 0 || rows.size === 0;
    const state = JSON.stringify([width, runs.map(([id, run]) => [id, run.slot, run.training.length, run.heldout.length, run.version])]);
    if (state === drawn) return;
    drawn = state;
    out.hidden = runs.length === 0;
    if (out.hidden) return;
    const room = Math.floor(frame.clientWidth || width);
    picture = curves(runs.flatMap(([, { slot, training, heldout }]) => [
      { points: training, slot, dashed: false, label: training.length > 0 ? String(slot) : undefined },
      { points: heldout, slot, dashed: true, label: training.length > 0 ? undefined : String(slot) },
    ]), room);
    frame.replaceChildren(picture.root);
    keys.replaceChildren(...runs.map(([id, { slot }]) => el("span", { class: "key-of" }, el("span", { class: `badge c${slot}` }, String(slot)), el("b", { dir: "auto" }, id), ...legend(slot, false, "training_loss"), ...legend(slot, true, "heldout_loss"))));
    table.replaceChildren(lastValues(runs));
    tell(cursor);
  }

  function lastValues(runs) {
    const heads = ["run", "step", "training_loss", "heldout_loss", "best_loss"].map((key, n) => saying("th", { scope: "col", class: n === 0 ? null : "number" }, key));
    const body = runs.map(([id, { slot, training, heldout }]) => {
      const best = heldout.reduce((found, point) => (found === null || point[1] < found[1] ? point : found), null);
      const step = Math.max(training.at(-1)?.[0] ?? 0, heldout.at(-1)?.[0] ?? 0);
      return el("tr", {}, el("th", { scope: "row" }, el("span", { class: `badge c${slot}` }, String(slot)), el("span", { dir: "auto" }, id)),
        el("td", { class: "number" }, number(step)), el("td", { class: "number" }, loss(training.at(-1))), el("td", { class: "number" }, loss(heldout.at(-1))),
        best === null ? el("td", { class: "number" }, "–") : saying("td", { class: "number best" }, "best_at", { n: loss(best), a: number(best[0]) }));
    });
    return el("table", {}, saying("caption", {}, "last_values"), el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...body));
  }

  /** The values of every run at a step; null: of none. */
  function tell(step) {
    cursor = step;
    picture?.point(step);
    if (step === null) return values.replaceChildren();
    const lines = [...chosen].filter(([, run]) => run.training.length + run.heldout.length > 0).map(([id, { slot, training, heldout }]) =>
      el("span", {}, el("span", { class: `badge c${slot}` }, String(slot)), saying("span", { dir: "auto" }, "value_of", { name: id, a: loss(before(training, step, training, heldout)), b: loss(before(heldout, step, training, heldout)) })));
    return values.replaceChildren(saying("b", {}, "value_at", { a: number(step) }), ...lines);
  }

  const allSteps = () => [...new Set([...chosen.values()].flatMap(({ training, heldout }) => [...training, ...heldout].map(([step]) => step)))].sort((a, b) => a - b);

  function pointed(event) {
    if (picture === null) return;
    const wanted = picture.stepAt(event.clientX - frame.getBoundingClientRect().left);
    const steps = allSteps();
    tell(steps.reduce((found, step) => (Math.abs(step - wanted) < Math.abs(found - wanted) ? step : found), steps[0]));
  }

  function moved(event) {
    const steps = allSteps();
    const now = cursor === null ? steps.length : steps.indexOf(cursor);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (next === undefined || picture === null) return;
    event.preventDefault();
    tell(steps[Math.max(0, Math.min(steps.length - 1, next))]);
  }

  const root = el("div", { class: "columns trainings" },
    el("section", { class: "column" }, saying("h2", {}, "runs"), none, list, most),
    el("div", { class: "column" }, box.root, hint, out, code.root));
  const size = new ResizeObserver(() => draw());
  size.observe(root);
  const back = () => poll();
  document.addEventListener("visibilitychange", back);
  const end = () => {
    clearInterval(timer);
    size.disconnect();
    document.removeEventListener("visibilitychange", back);
    control?.abort();
  };
  return { root, end, seen: () => setTimeout(poll) };
}

const nothing = () => ({ training: [], heldout: [], version: "", next: 0, seen: "" });

const loss = (point) => (point === undefined || point === null ? "–" : number(point[1], 3));

/** The last point up to a step; none behind the end of all its run's points. */
const before = (points, step, ...all) => (all.some((each) => each.at(-1)?.[0] >= step) ? points.findLast(([at]) => at <= step) : undefined);

/** The key and values of a time in words: [key, values]. */
function lasting(kind, seconds) {
  const [short, middle, long] = TIMES[kind];
  if (seconds < 60) return [short, { n: number(Math.max(1, Math.round(seconds))) }];
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? [middle, { n: number(minutes) }] : [long, { a: number(Math.floor(minutes / 60)), b: number(minutes % 60) }];
}
