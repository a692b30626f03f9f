"""A Chromium for the tests of pages: python tools/browser.py says where one is, after installing it if there is none.

Looked for: Chromium or Chrome on the path, then the build that Playwright has downloaded. Installed from Debian's
packages where that is possible, else by `playwright install chromium`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APT = (
    ("apt-get", "update", "-qq"),
    ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"),
)
PLAYWRIGHT = ((sys.executable, "-m", "playwright", "install", "chromium"),)


def find() -> str:
    """The path of a Chromium that is here, "" for none."""
    on_path = next((found for name in NAMES if (found := shutil.which(name))), "")
    return on_path or _downloaded()


def _downloaded() -> str:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return ""
    with sync_playwright() as driver:
        path = driver.chromium.executable_path
    return path if Path(path).is_file() else ""


def install() -> None:
    """Try the ways to get one; their output is the user's to read."""
    can_apt = shutil.which("apt-get") and os.geteuid() == 0
    for command in APT if can_apt else PLAYWRIGHT:
        subprocess.run(command, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def main() -> int:
    """Print where the browser is; exit code 1 where there is none to be had."""
    if not find():
        install()
    found = find()
    print(found or "no Chromium here, and none could be installed: the browser tests will be skipped")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
