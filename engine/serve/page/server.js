// The second tab: what the server does now, from /metrics, and small plots of the last minutes.
const SAMPLES_MAX = 150;
const samples = [];
let timer = null;

function watchServer(on) {
  clearInterval(timer);
  timer = null;
  if (!on) return;
  const look = () => sample().catch((error) => $("server").replaceChildren(make("p", { role: "alert" }, error.message)));
  timer = setInterval(look, 2000);
  look();
}

// Numbers by name and labels: {name: {labels: value}}.
function parse(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = line.match(/^rwkv_edge_(\w+)(?:\{([^}]*)\})? (\S+)/);
    if (parts) (found[parts[1]] ??= {})[parts[2] ?? ""] = Number(parts[3]);
  }
  return found;
}

async function sample() {
  const answer = await ask("/metrics");
  if (!answer.ok) throw await failure(answer);
  samples.push({ at: performance.now() / 1000, values: parse(await answer.text()) });
  if (samples.length > SAMPLES_MAX) samples.shift();
  const models = (await json("/v1/models")).data;
  if (timer !== null) $("server").replaceChildren(...describe(models));
}

const bytes = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : n < 1e9 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e9).toFixed(2)} GB`);

function describe(models) {
  const { values } = samples.at(-1);
  const of = (name, model) => {
    const entries = Object.entries(values[name] ?? {}).filter(([labels]) => labels.includes(`model="${model}"`));
    return entries.reduce((sum, [, value]) => sum + value, 0);
  };
  const columns = [
    ["Running", (id) => of("sequences_running", id)],
    ["Waiting", (id) => of("sequences_waiting", id)],
    ["States in memory", (id) => `${of("states_memory", id)} (${bytes(of("states_memory_bytes", id))})`],
    ["States on disk", (id) => `${of("states_disk", id)} (${bytes(of("states_disk_bytes", id))})`],
    ["Tokens made", (id) => of("tokens_made_total", id)],
    ["Tokens read", (id) => of("tokens_read_total", id)],
    ["Tokens known", (id) => of("tokens_reused_total", id)],
  ];
  const head = make("tr", {}, make("th", { scope: "col" }, "Model"));
  head.append(...columns.map(([name]) => make("th", { scope: "col" }, name)));
  const rows = models.map(({ id }) => {
    const cells = columns.map(([, value]) => make("td", { className: "number" }, String(value(id))));
    return make("tr", {}, make("th", { scope: "row" }, id), ...cells);
  });
  const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Models" });
  scroll.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  const sums = (name) => samples.map(({ at, values }) => [at, Object.values(values[name] ?? {}).reduce((a, b) => a + b, 0)]);
  const rates = (name) => {
    const all = sums(name);
    return all.slice(1).map(([at, value], i) => [at, Math.max(0, value - all[i][1]) / (at - all[i][0])]);
  };
  return [
    make("h2", {}, "Models"),
    scroll,
    plot("Tokens made a second", rates("tokens_made_total")),
    plot("Prompt tokens read a second", rates("tokens_read_total")),
    plot("Answers under way", sums("sequences_running")),
    plot("Memory of states", sums("states_memory_bytes"), bytes),
  ];
}

function plot(title, points, text = (n) => n.toFixed(1)) {
  const last = points.at(-1)?.[1] ?? 0;
  const most = Math.max(...points.map(([, value]) => value), 1e-9);
  const now = samples.at(-1).at;
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const drawn = svg("svg", { viewBox: "0 0 300 50", preserveAspectRatio: "none", "aria-hidden": "true" });
  const place = ([at, value]) => `${(300 + at - now).toFixed(1)},${(48 - (46 * value) / most).toFixed(1)}`;
  drawn.append(svg("polyline", { points: points.map(place).join(" ") }));
  return make("figure", {}, make("figcaption", {}, `${title}: ${text(last)}, at most ${text(most < 1e-6 ? 0 : most)} in the last five minutes`), drawn);
}
