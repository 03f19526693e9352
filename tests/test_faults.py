"""A study that is killed at any operation goes on to the same files; see tests/faults.py, which tries all of them."""

import subprocess
import sys
from pathlib import Path

# Here a sample; `python tests/faults.py FOLDER` tries every operation.
EVERY = 29


def test_a_study_killed_anywhere_ends_with_the_same_files(tmp_path):
    script = Path(__file__).with_name("faults.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "--every", str(EVERY)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    operations, tried, _ = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit())
    assert tried >= operations // EVERY - 1 > 50 and "0 faults" in done.stdout
