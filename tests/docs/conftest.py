import sys
from pathlib import Path

# The site's own extensions are modules of docs/_ext.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "_ext"))
