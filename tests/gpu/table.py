"""One table of what tests/gpu/run has found.

usage: table.py RESULTS [GPUS]
"""

import json
import pathlib
import re
import sys

results = pathlib.Path(sys.argv[1])


def read(name):
    path = results / name
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def text(name):
    path = results / name
    return path.read_text().strip() if path.exists() else ""


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value):
    return "-" if value is None else f"{100 * value:.0f} %"


def times(ours, theirs):
    return "-" if not ours or not theirs else f"{ours / theirs:.1f}x"


def batch(report, n):
    rows = [row["tokens_per_s"] for row in report.get("batch", []) if row["sequences"] == n]
    return rows[0] if rows else None


print(f"{text('date.txt')}: {text('gpus.txt').splitlines()[0] if text('gpus.txt') else 'no GPU'}")
print()
for status in sorted(results.glob("*.status")):
    counts = re.findall(r"test result: .*?(\d+) passed; (\d+) failed", text(status.stem + ".txt"))
    clean = re.findall(r"^\d+ of \d+ tests clean$", text(status.stem + ".txt"), re.M)
    counted = f", {counts[-1][0]} tests" if counts else ""
    counted = f", {clean[-1]}" if clean else counted
    print(f"{status.stem:24} {text(status.name)}{counted}")
measured = re.findall(r"^(.*?) +(\d\.\d+e-?\d+) of (\S+)$", text("suite.txt"), re.M)
for kind in ["f16 decode", "prefill of", "int8 pieces", "hidden", "sequences at once"]:
    of_kind = [(float(found), bound) for what, found, bound in measured if kind in what]
    if of_kind:
        print(f"suite, {kind:17} largest deviation {max(of_kind)[0]:.2e}")

print()
print("| model | one user tok/s | of reading limit | 64 users | 256 users | prefill 512 | prefill 2048 | of peak | GPU MB | host MB |")
print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
limits = {}
for size in ["169m", "430m", "1b5"]:
    theirs = read(f"transformers-{size}.json")
    for quant in ["f16", "int8"]:
        report, short = read(f"bench-{size}-{quant}.json"), read(f"bench-{size}-{quant}-512.json")
        if not report:
            continue
        limits = report
        get = report.get
        print(
            f"| {size} {quant} | {number(get('decode_tokens_per_s'))} | {percent(get('decode_share_of_limit'))} "
            f"| {number(batch(report, 64))} | {number(batch(report, 256))} "
            f"| {number(short.get('prefill_tokens_per_s'))} | {number(get('prefill_tokens_per_s'))} "
            f"| {percent(get('prefill_share_of_limit'))} "
            f"| {get('device_allocated_bytes', 0) / 1e6:.0f} | {(get('private_bytes') or 0) / 1e6:.0f} |"
        )
    if theirs:
        ours = [read(f"bench-{size}-f16.json"), read(f"bench-{size}-f16-512.json")]
        pairs = [
            (ours[0].get("decode_tokens_per_s"), theirs.get("decode_tokens_per_s")),
            (batch(ours[0], 64), theirs.get("batch_64_tokens_per_s")),
            (ours[1].get("prefill_tokens_per_s"), theirs.get("prefill_512_tokens_per_s")),
        ]
        cells = [f"{number(them)} ({times(us, them)})" for us, them in pairs]
        print(f"| {size} transformers {theirs.get('transformers')} fp16 | {cells[0]} | | {cells[1]} | | {cells[2]} | | | | |")
if limits.get("read_bytes_per_s"):
    print(
        f"\nlimits of the device: read {limits['read_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"{limits['macs_per_s'] / 1e12:.0f} T multiply-adds/s, a dependent step {limits['step_seconds'] * 1e6:.2f} us"
    )

one, split = read("bench-gpus-one.json"), read("bench-gpus-split.json")
parallel, limited = read("bench-gpus-parallel.json"), read("bench-gpus-limited.json")
if one:
    gpus = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    print(f"\n1b5 f16 on {gpus} GPUs\n\n{text('topology.txt')}\n")
    print("| what | tokens/s | beside one GPU |")
    print("| --- | ---: | ---: |")

    def row(what, ours, base):
        print(f"| {what} | {number(ours)} | {'-' if not ours or not base else f'{ours / base:.2f}x'} |")

    base_user = one.get("decode_tokens_per_s")
    row("one GPU, one user", base_user, base_user)
    row("one GPU, 128 sessions", batch(one, 128), batch(one, 128))
    row("one GPU, 256 sessions", batch(one, 256), batch(one, 256))
    row("split, one user", split.get("decode_tokens_per_s"), base_user)
    row(f"split, {128 * gpus} sessions (beside 128)", batch(split, 128 * gpus), batch(one, 128))
    row(f"data-parallel, {256 * gpus} sessions (beside 256)", batch(parallel, 256 * gpus), batch(one, 256))
    row("auto with 2 GB a GPU, one user", limited.get("decode_tokens_per_s"), base_user)
    for stage in limited.get("stages", []):
        print(f"2 GB a GPU: {stage['device']} has {stage['n_layer']} layers, takes {stage['allocated_bytes'] / 1e6:.0f} MB")
    print(text("gpus-answers.txt"))
