"""What a scripted broker has answered, by dispatch id: in memory, or in a file that outlives the process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSING = frozenset({408, 412, 425, 429})
"""4xx answers that are no outcome: the id is forgotten and its next attempt runs."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any = None

    @property
    def final(self) -> bool:
        return self.status < 500 and self.status not in PASSING

    @property
    def well(self) -> bool:
        return self.status < 400


class Inbox:
    """`answers` are final; `begun` holds ids whose effect is there and whose answer may not be."""

    def __init__(self, path: Path | None) -> None:
        self.answers: dict[str, Answer] = {}
        self.begun: set[str] = set()
        self._file: int | None = None
        if path is not None:
            self._load(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def begin(self, dispatch: str) -> None:
        """Called with the effect: one line, so that a kill leaves both or neither."""
        self.begun.add(dispatch)
        self._keep({"begun": dispatch})

    def finish(self, dispatch: str, answer: Answer) -> None:
        if answer.final:
            self.answers[dispatch] = answer
            self._keep({"answered": dispatch, "status": answer.status, "body": answer.body})

    def _keep(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            os.write(self._file, json.dumps(line).encode() + b"\n")

    def _load(self, path: Path) -> None:
        for text in path.read_text().splitlines() if path.exists() else ():
            line = json.loads(text)
            if dispatch := line.get("begun"):
                self.begun.add(dispatch)
            else:
                self.answers[line["answered"]] = Answer(status=line["status"], body=line["body"])
