#!/usr/bin/env python3
"""Measures what one GPU reaches on a model's real shapes and writes a GPU profile for `gpufeed --gpu FILE`.

Weights are random: only their shapes matter. Times come from CUDA events, the median of several runs after a warm-up.
Without --dry-run this needs PyTorch with CUDA (or ROCm) and one GPU; with it, only Python.
"""

import argparse
import datetime
import statistics
import sys

# Dimensions as in profiles/data/models.toml: layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary.
MODELS = {
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128, 128256),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 128, 152064),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, 151936),
    "qwen3-32b": (64, 5120, 25600, 64, 8, 128, 151936),
    "llama-3.1-70b": (80, 8192, 28672, 64, 8, 128, 128256),
}
# Dense peaks and links cannot be measured here: they are stated on the command line or stay as in this table.
# name: (bf16 FLOP/s, memory bandwidth, memory, link to other GPUs, network adapter), as in profiles/data/gpus.toml.
CARDS = {
    "H100": ("989TFLOP/s", 3.35e12, "450GB/s", "50GB/s"),
    "H200": ("989TFLOP/s", 4.8e12, "450GB/s", "50GB/s"),
    "A100": ("312TFLOP/s", 2.039e12, "300GB/s", "25GB/s"),
    "H20": ("148TFLOP/s", 4.0e12, "450GB/s", "50GB/s"),
    "L40S": ("362TFLOP/s", 0.864e12, "31.5GB/s", "25GB/s"),
    "A10G": ("70TFLOP/s", 0.6e12, "31.5GB/s", "1.56GB/s"),
    "B200": ("2250TFLOP/s", 8.0e12, "900GB/s", "50GB/s"),
    "MI300X": ("1307.4TFLOP/s", 5.3e12, "448GB/s", "50GB/s"),
}


def gemms(model):
    """The GEMMs of a layer as (name, inputs, outputs)."""
    _, hidden, intermediate, heads, kv_heads, head_dim, _ = MODELS[model]
    return [
        ("qkv", hidden, (heads + 2 * kv_heads) * head_dim),
        ("out", heads * head_dim, hidden),
        ("gate_up", hidden, 2 * intermediate),
        ("down", intermediate, hidden),
    ]


def quantity(text):
    """Number of a quantity such as 989TFLOP/s or 3.35TB/s."""
    digits = text.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz/")
    scale = {"G": 1e9, "T": 1e12, "P": 1e15}.get(text[len(digits) : len(digits) + 1], 1.0)
    return float(digits) * scale


def card_of(name):
    """The row of CARDS that a device name contains; the longest, so that H200 is not H20."""
    known = [key for key in CARDS if key in name.upper()]
    return CARDS[max(known, key=len)] if known else None


def shapes(args):
    """What would be measured, as lines of text."""
    layers, _, _, heads, kv_heads, head_dim, vocabulary = MODELS[args.model]
    lines = [f"model {args.model}: {layers} layers, vocabulary {vocabulary}"]
    for name, inputs, outputs in gemms(args.model):
        for tokens in args.contexts:
            lines.append(f"prefill gemm {name}: [{tokens}, {inputs}] x [{inputs}, {outputs}] bf16")
        for batch in args.batches:
            lines.append(f"decode gemm {name}: [{batch}, {inputs}] x [{inputs}, {outputs}] bf16")
    for tokens in args.contexts:
        lines.append(f"prefill attention: {heads} heads, {kv_heads} KV heads, {tokens} x {tokens} causal, {head_dim} wide")
    for batch in args.batches:
        for tokens in args.contexts:
            lines.append(f"decode attention: batch {batch}, {heads} heads, {kv_heads} KV heads, 1 x {tokens}, {head_dim} wide")
    lines.append(f"copies: {args.copy_mib} MiB pinned, host to device and device to host; device to device")
    return lines


def measure(args):
    """Runs everything; rows of (what, context, batch, seconds) and the rates found."""
    import torch
    import torch.nn.functional as F

    device = torch.device("cuda")
    half = torch.bfloat16

    def timed(run):
        for _ in range(3):
            run()
        times = []
        for _ in range(args.repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    rows = []
    flops = {"gemm": 0.0, "attention": 0.0}
    seconds = {"gemm": 0.0, "attention": 0.0, "weights": 0.0, "kv": 0.0, "kv_batch": 0.0}
    moved = {"weights": 0.0, "kv": 0.0, "kv_batch": 0.0}
    layers, _, _, heads, kv_heads, head_dim, _ = MODELS[args.model]
    # Several copies of each weight, taken in turn, so that no read is served by the cache.
    for name, inputs, outputs in gemms(args.model):
        copies = max(2, int(512e6 // (inputs * outputs * 2)) + 1)
        weights = [torch.randn(inputs, outputs, device=device, dtype=half) for _ in range(copies)]
        for kind, sizes in (("prefill", args.contexts), ("decode", args.batches)):
            for tokens in sizes:
                x = torch.randn(tokens, inputs, device=device, dtype=half)

                def run(x=x, weights=weights):
                    for weight in weights:
                        torch.mm(x, weight)

                took = timed(run) / copies
                rows.append((f"{kind} {name}", tokens if kind == "prefill" else 0, tokens if kind == "decode" else 1, took))
                if kind == "prefill" and tokens == max(args.contexts):
                    flops["gemm"] += 2.0 * inputs * outputs * tokens
                    seconds["gemm"] += took
                if kind == "decode" and tokens == min(args.batches):
                    moved["weights"] += inputs * outputs * 2.0
                    seconds["weights"] += took
        del weights
    for tokens in args.contexts:
        q = torch.randn(1, heads, tokens, head_dim, device=device, dtype=half)
        k, v = (torch.randn(1, kv_heads, tokens, head_dim, device=device, dtype=half) for _ in range(2))
        took = timed(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        rows.append(("prefill attention", tokens, 1, took))
        if tokens == max(args.contexts):
            flops["attention"] = 2.0 * heads * head_dim * tokens * tokens
            seconds["attention"] = took
    for batch in args.batches:
        for tokens in args.contexts:
            try:
                q = torch.randn(batch, heads, 1, head_dim, device=device, dtype=half)
                k, v = (torch.randn(batch, kv_heads, tokens, head_dim, device=device, dtype=half) for _ in range(2))
            except torch.cuda.OutOfMemoryError:
                continue
            # Query heads of a group as rows of one query: what decode kernels do, and no copies of K and V.
            grouped = q.view(batch, kv_heads, heads // kv_heads, head_dim)
            took = timed(lambda g=grouped, k=k, v=v: F.scaled_dot_product_attention(g, k, v))
            rows.append(("decode attention", tokens, batch, took))
            if tokens == max(args.contexts) and batch in (min(args.batches), max(args.batches)):
                key = "kv" if batch == min(args.batches) else "kv_batch"
                moved[key] = 2.0 * 2.0 * batch * kv_heads * head_dim * tokens
                seconds[key] = took
    bytes_ = args.copy_mib << 20
    host = torch.empty(bytes_, dtype=torch.uint8, pin_memory=True)
    card = torch.empty(bytes_, dtype=torch.uint8, device=device)
    other = torch.empty_like(card)
    to_card = bytes_ / timed(lambda: card.copy_(host, non_blocking=True))
    to_host = bytes_ / timed(lambda: host.copy_(card, non_blocking=True))
    stream = 2.0 * bytes_ / timed(lambda: other.copy_(card))
    properties = torch.cuda.get_device_properties(device)
    found = {
        "name": properties.name,
        "memory": properties.total_memory,
        "driver": driver_version(),
        "torch": torch.__version__,
        "gemm": flops["gemm"] / seconds["gemm"],
        "attention": flops["attention"] / seconds["attention"],
        "weights": moved["weights"] / seconds["weights"],
        "kv": moved["kv"] / seconds["kv"],
        "kv_batch": moved["kv_batch"] / seconds["kv_batch"] if seconds["kv_batch"] else None,
        "to_card": to_card,
        "to_host": to_host,
        "stream": stream,
    }
    return rows, found


def driver_version():
    """Version of the driver, as nvidia-smi tells it."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def profile(args, found):
    """The profile as TOML text: the keys of a table of profiles/data/gpus.toml."""
    card = card_of(found["name"])
    peak = args.peak or (card and card[0])
    hbm = args.hbm_bandwidth and quantity(args.hbm_bandwidth) or (card and card[1])
    if not peak or not hbm:
        sys.exit(f"{found['name']} is not known here: give its dense bf16 peak and memory bandwidth, --peak and --hbm-bandwidth")
    share = lambda value, of: round(min(value / of, 1.0), 3)
    here = f"measured: {found['name']}, driver {found['driver']}, PyTorch {found['torch']}, {datetime.date.today()}, shapes of {args.model}"
    batch = found["kv_batch"]
    loss = round(max(0.0, found["kv"] / batch - 1.0), 3) if batch else 0.0
    keys = {
        "name": f'"{args.name or found["name"].lower().replace(" ", "-") + "-measured"}"',
        "hbm_bytes": f'"{found["memory"]}B"',
        "hbm_bytes_per_s": f'"{hbm / 1e12:g}TB/s"',
        "peer_bytes_per_s": f'"{args.peer or (card and card[2]) or "31.5GB/s"}"',
        "host_link_bytes_per_s": f'"{found["to_card"] / 1e9:.1f}GB/s"',
        "nic_bytes_per_s": f'"{args.nic or (card and card[3]) or "25GB/s"}"',
        "all_reduce_latency": '"6us"',
        "all_reduce_hop": '"150ns"',
        "peak": f'{{ bf16 = "{peak}" }}',
        "gemm_ratio": f"{{ bf16 = {share(found['gemm'], quantity(peak))} }}",
        "attention_ratio": f"{{ bf16 = {share(found['attention'], quantity(peak))} }}",
        "kv_read_ratio": f"{{ bf16 = {share(found['kv'], hbm)} }}",
        "kv_batch_loss_ratio": f"{{ bf16 = {loss} }}",
        "weight_read_ratio": share(found["weights"], hbm),
        "hbm_stream_ratio": share(found["stream"], hbm),
        "peer_ratio": 0.8,
    }
    stated = {"hbm_bytes_per_s", "peer_bytes_per_s", "nic_bytes_per_s", "peak"}
    guessed = {"all_reduce_latency", "all_reduce_hop", "peer_ratio"}
    lines = [f"# Written by profiles/calibrate/calibrate.py. {here}.", f"# Device to host: {found['to_host'] / 1e9:.1f} GB/s."]
    lines += [f"{key} = {value}" for key, value in keys.items()]
    lines += ["", "[sources]"]
    for key in keys:
        if key in stated:
            lines.append(f'{key} = "stated on the command line, or as in profiles/data/gpus.toml"')
        elif key in guessed:
            lines.append(f'{key} = "not measured, one GPU only: as for NVLink in profiles/data/gpus.toml"')
        elif key != "name":
            lines.append(f'{key} = "{here}"')
    return "\n".join(lines) + "\n"


# What a dry run puts in place of measurements, so that the format can be tested without a GPU. No figure of any card.
EXAMPLE = {
    "name": "NVIDIA Example H100", "memory": 80_000_000_000, "driver": "none", "torch": "none", "gemm": 5.0e14,
    "attention": 4.0e14, "weights": 2.5e12, "kv": 2.9e12, "kv_batch": 2.4e12, "to_card": 5.0e10, "to_host": 5.1e10,
    "stream": 2.8e12,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b", help="whose shapes")
    parser.add_argument("--contexts", type=numbers, default=[512, 2048, 8192, 32768], help="tokens, separated by commas")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64], help="sequences, separated by commas")
    parser.add_argument("--copy-mib", type=int, default=1024, help="size of host and device copies")
    parser.add_argument("--repeats", type=int, default=10, help="runs of which the median counts")
    parser.add_argument("--name", help="name of the profile")
    parser.add_argument("--peak", help="dense bf16 peak, e.g. 989TFLOP/s")
    parser.add_argument("--hbm-bandwidth", help="peak memory bandwidth, e.g. 3.35TB/s")
    parser.add_argument("--peer", help="link to other GPUs per direction, e.g. 450GB/s")
    parser.add_argument("--nic", help="network adapter of a GPU, e.g. 50GB/s")
    parser.add_argument("--out", help="profile to write [default: standard output]")
    parser.add_argument("--rows", help="CSV of every measurement to write")
    parser.add_argument("--dry-run", action="store_true", help="print the shapes and an example profile, without PyTorch")
    args = parser.parse_args()
    if args.dry_run:
        print("\n".join("# " + line for line in shapes(args)))
        print("# The profile below holds made-up figures: it shows the format only.")
        print(profile(args, EXAMPLE), end="")
        return
    rows, found = measure(args)
    if args.rows:
        with open(args.rows, "w", encoding="utf-8") as out:
            out.write("what,context_tokens,batch,seconds\n")
            out.writelines(f"{what},{context},{batch},{took:.9f}\n" for what, context, batch, took in rows)
    text = profile(args, found)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as out:
            out.write(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
