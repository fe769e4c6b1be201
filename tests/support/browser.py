"""A real Chromium, and windows of it that let nothing pass: an error in the console, a word to another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""None where there is none: `make chromium` installs it."""


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium does not begin as root with one
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, rules])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def window(browser: Browser, url: str, *expected: str, **context: Any) -> AsyncIterator[Page]:
    """A page of a browser that knows nothing yet, at `url`; `expected` are errors that a test provokes."""
    found = await browser.new_context(base_url=url, **context)
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(each in message.text for each in expected):
            wrong.append(f"{message.type}: {message.text}")

    def asked(request: Request) -> None:
        if not request.url.startswith((f"{url}/", "data:")):
            wrong.append(f"a request to {request.url}")

    found.on("console", said)
    found.on("weberror", lambda error: wrong.append(f"an exception: {error.error}"))
    found.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    found.on("request", asked)
    found.set_default_timeout(15_000)
    try:
        yield await found.new_page()
    finally:
        await found.close()
    assert wrong == []
