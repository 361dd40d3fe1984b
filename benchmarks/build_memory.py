"""Speed and memory of ``bertconv build-dataset`` on text of growing size, made of copies of the given files.

python benchmarks/build_memory.py --text wiki.txt books.txt --tokenizer tok/spm.model --copies 1 7 29
"""

import argparse
import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

import psutil


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; return the peak of its and its children's total resident memory, in bytes."""
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process has just ended
            peak = max(peak, sum(each.memory_info().rss for each in [parent, *parent.children(recursive=True)]))
        time.sleep(0.2)
    return peak


def main() -> None:
    """Build once for each number of copies and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 7, 29])
    arguments = parser.parse_args()
    for copies in arguments.copies:
        with tempfile.TemporaryDirectory() as scratch:
            text, output = Path(scratch) / "text", Path(scratch) / "pairs"
            text.mkdir()
            for copy in range(copies):
                (text / f"{copy:03}.txt").write_bytes(b"".join(path.read_bytes() for path in arguments.text))
            size = sum(path.stat().st_size for path in text.iterdir())
            flags = ["--train_data_file", text, "--tokenizer_name", arguments.tokenizer, "--output_dir", output]
            begun = time.monotonic()
            process = subprocess.Popen(
                ["bertconv", "build-dataset", *map(str, flags)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            peak = peak_memory(process)
            seconds = time.monotonic() - begun
            written = sum(path.stat().st_size for path in output.iterdir())
            print(
                f"{size / 1e9:.2f} GB: {seconds:.0f} s, {size / seconds / 1e6:.1f} MB/s, peak of all processes "
                f"{peak / 2**20:.0f} MiB, {written / size:.2f} bytes per byte of text",
                flush=True,
            )


if __name__ == "__main__":
    main()
