"""Run every benchmark of this folder, one after the other; each prints its ratios.

`bench_scale.py` is run small: by itself it takes 100,000 wafers and 12 GB of disk.
"""

import subprocess
import sys
from pathlib import Path

SMALL = {"bench_scale.py": ["--wafers", "8000"]}

for script in sorted(Path(__file__).parent.glob("bench_*.py")):
    print(f"== {script.name}", flush=True)
    subprocess.run([sys.executable, str(script), *SMALL.get(script.name, [])], check=True)
