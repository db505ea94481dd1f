"""Mutated frames by the million against the decoder and the validator.

    python benchmarks/fuzz.py --frames 10000000 --seed 1

Each block of frames is read by `Finnhub.decode`, or by the `json` feed with settings of every kind, and by the tests'
slow reference; Finnhub's trades are judged by `validate` and by that reference. They must agree trade for trade,
reject for reject, notice for notice. The first difference ends the run with exit 1 and the seed of its block:
`--seed <that> --frames 1` repeats it.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from frame_mutations import MAPPED, block, lone_block, mapped_block
from reference_decoder import Said, insane, own_of, read, read_mapped, said

from ingestor.capture.validate import are_few_good, validate
from ingestor.config.feeds import JsonSettings
from ingestor.feeds import Frames
from ingestor.feeds.finnhub import Finnhub
from ingestor.feeds.json_map import JsonMap

NOW_US = 1_700_000_000_000_000
BLOCK_FRAMES = (1, 30, 64, 200, 1000)
HOSTILE_SHARES = (0.01, 0.1, 0.5, 1.0)
LONE_SHARE = 0.9
PROGRESS_S = 5.0


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    feed = Finnhub("wss://ws.finnhub.io", "")
    counts: Counter[str] = Counter()
    began = reported = time.monotonic()
    seed = arguments.seed
    while counts["frames"] < arguments.frames:
        if found := check_block(feed, seed, counts) or check_mapped_block(seed, counts):
            print(f"Seed {seed}: {found}\nRepeat: python benchmarks/fuzz.py --seed {seed} --frames 1")
            return 1
        seed += 1
        if time.monotonic() - reported >= PROGRESS_S:
            reported = time.monotonic()
            print(f"{counts['frames']:,} of {arguments.frames:,} frames", file=sys.stderr)
    print(summary(counts, time.monotonic() - began))
    return 0


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first block (default: %(default)s)")
    return parser.parse_args(words)


def check_block(feed: Finnhub, seed: int, counts: Counter[str]) -> str | None:
    """The first difference in the block of this seed, as a text; None if there is none."""
    random = Random(seed)
    payloads = make_block(random)
    decoded = feed.decode(Frames(payloads, [0] * len(payloads)))
    heard, expected = said(decoded), read(payloads)
    if heard != expected:
        return difference(heard, expected, payloads)
    verdict = validate(decoded.trades, NOW_US)
    bad = insane(decoded.trades, NOW_US)
    rows = {row for row, _ in bad}
    kept = [row not in rows for row in range(decoded.trades.num_rows)] if rows else None
    if verdict.rejected != bad or (verdict.kept and verdict.kept.to_pylist()) != kept:
        return f"validate: {verdict.rejected} where {bad} was expected"
    if decoded.few is not None and are_few_good(decoded.few.values, NOW_US) != (not bad):
        return f"are_few_good, where {bad} was expected"
    counts.update(blocks=1, frames=len(payloads), trades=len(heard.trades), rejects=len(heard.rejects), insane=len(bad))
    return None


def check_mapped_block(seed: int, counts: Counter[str]) -> str | None:
    """The same of a venue that settings describe."""
    random = Random(seed)
    name, (settings, messages) = random.choice(list(MAPPED.items()))
    payloads = mapped_block(random, messages)
    options = JsonSettings.model_validate({"type": "json", "url": "wss://venue", **settings})
    decoded = JsonMap(options).decode(Frames(payloads, [NOW_US] * len(payloads)))
    heard = said(decoded)
    heard.own = own_of(decoded)
    expected = read_mapped(options, payloads, NOW_US)
    if heard != expected:
        return f"{name}: {difference(heard, expected, payloads)}"
    counts.update(blocks=1, frames=len(payloads), trades=len(heard.trades), rejects=len(heard.rejects))
    return None


def make_block(random: Random) -> list[bytes]:
    if random.random() < LONE_SHARE:
        return lone_block(random)
    return block(random, random.choice(BLOCK_FRAMES), random.choice(HOSTILE_SHARES))


def difference(heard: Said, expected: Said, payloads: list[bytes]) -> str:
    for kind in ("trades", "rejects", "notices", "own"):
        ours, theirs = getattr(heard, kind), getattr(expected, kind)
        for index in range(max(len(ours), len(theirs))):
            one, other = ours[index : index + 1], theirs[index : index + 1]
            if one != other:
                return f"{kind}[{index}] of {len(payloads)} frames: {one} where {other} was expected"
    raise AssertionError("the two differ in nothing")


def summary(counts: Counter[str], elapsed_s: float) -> str:
    return (
        f"{counts['frames']:,} frames in {counts['blocks']:,} blocks: {counts['trades']:,} trades,"
        f" {counts['rejects']:,} rejects, {counts['insane']:,} insane; no difference."
        f" {elapsed_s:.0f} s, {counts['frames'] / elapsed_s:,.0f} frames/s"
    )


if __name__ == "__main__":
    sys.exit(main())
