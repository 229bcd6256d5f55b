"""Every answer of a judge, in SQLite, written as it arrives and never paid for twice.

A question is stored under the hash of all that changes its answer (`rubric.question_key`); its answers keep
the raw reply, so ratings are read anew without a network. Processes share a store through claims: who is
about to pay for a question says so first, with the most it can cost. Needs a local disk (write-ahead log).
Must not know how an answer is got, nor what items are.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tagsteer.errors import TagsteerError
from tagsteer.judge.rubric import read_reply

_MAGIC = 0x7A675374
_SCHEMA = """
CREATE TABLE questions(
    key TEXT PRIMARY KEY, part TEXT NOT NULL, model TEXT NOT NULL, rubric TEXT NOT NULL,
    parameters TEXT NOT NULL, prompt TEXT NOT NULL);
CREATE TABLE answers(
    id TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES questions(key), created REAL NOT NULL,
    reply TEXT NOT NULL, finish_reason TEXT,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, tokens_from TEXT NOT NULL,
    served_by TEXT NOT NULL, merged INTEGER NOT NULL DEFAULT 0);
CREATE INDEX answers_of ON answers(key);
CREATE TABLE spending(model TEXT PRIMARY KEY, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL);
CREATE TABLE claims(
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, model TEXT NOT NULL,
    until REAL NOT NULL, bound REAL NOT NULL);
"""

Claim = Literal["mine", "settled", "busy", "wait", "ceiling"]
"""mine: go ahead; settled: answered meanwhile; busy: another process asks it; wait: the ceiling may allow it
when the calls in flight turn out cheaper than their bounds; ceiling: it never will."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it is sent, with all that changes its answer."""

    key: str
    part: str
    model: str
    rubric: str
    parameters: str
    """As JSON."""
    prompt: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said to one question, and what it took."""

    text: str
    finish_reason: str | None
    tokens_in: int
    tokens_out: int
    tokens_from: Literal["reply", "estimate"] = "reply"
    served_by: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A settled question: its rating, or why there is none after `asked` answers."""

    rating: float | None
    reason: str
    asked: int


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge took over, and what was here already."""

    answers: int
    already: int


class JudgementStore:
    """Answers in one SQLite file, safe with several threads and processes. Close it, or use `with`."""

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time) -> None:
        self.path = path if str(path) == ":memory:" else Path(path)
        self._clock = clock
        self._lock = threading.RLock()
        if isinstance(self.path, Path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(
                str(self.path), timeout=60, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        """Make the tables in a new file; leave a file of something else as it is."""
        with self._writing() as db:
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={_MAGIC}")
            _check_ours(db, self.path)
        for patience in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, None):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                # SQLite does not wait for its lock here, and another process may be opening the file too.
                if patience is None:
                    raise
                time.sleep(patience)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> JudgementStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start, so that reads in it stay true.

        A durable one outlives a power cut; claims need not, they only outlive their process.
        """
        with self._lock:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def answers(self, key: str) -> list[Reply]:
        """The answers to a question, the oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT reply, finish_reason, tokens_in, tokens_out, tokens_from, served_by FROM answers "
                "WHERE key = ? ORDER BY created, id",
                (key,),
            ).fetchall()
        return [Reply(*row) for row in rows]

    def outcome(self, key: str, asks: int) -> Outcome | None:
        """The first readable answer, or the reason of the last if `asks` of them are unreadable; None: open.

        The order is that of the answers' times, so stores merged either way round give the same ratings.
        """
        replies = self.answers(key)
        reason = ""
        for reply in replies:
            rating, reason = read_reply(reply.text, reply.finish_reason)
            if rating is not None:
                return Outcome(rating, "", len(replies))
        if len(replies) < asks:
            return None
        return Outcome(
            None, f"{reason} (asked {len(replies)} times)" if len(replies) > 1 else reason, len(replies)
        )

    def is_settled(self, key: str, asks: int) -> bool:
        """Whether nothing is left to pay for."""
        return self.outcome(key, asks) is not None

    def spent(self, model: str) -> tuple[int, int]:
        """(tokens in, tokens out) paid for through this store; merged answers were paid for elsewhere."""
        with self._lock:
            row = self._db.execute(
                "SELECT tokens_in, tokens_out FROM spending WHERE model = ?", (model,)
            ).fetchone()
        return row or (0, 0)

    def claim(
        self,
        question: Question,
        owner: str,
        *,
        asks: int,
        lease_s: float,
        bound: float = 0.0,
        max_cost: float | None = None,
        cost: Callable[[float, float], float | None] = lambda *_: None,
    ) -> Claim:
        """Ask for the right to pay at most `bound` for an answer; ends after `lease_s` or its process."""
        now = self._clock()
        with self._writing(durable=False) as db:
            if self.is_settled(question.key, asks):
                return "settled"
            self._drop_dead(now)
            if db.execute("SELECT 1 FROM claims WHERE key = ?", (question.key,)).fetchone():
                return "busy"
            if max_cost is not None:
                spent = cost(*self.spent(question.model)) or 0.0
                (reserved,) = db.execute(
                    "SELECT coalesce(sum(bound), 0) FROM claims WHERE model = ?", (question.model,)
                ).fetchone()
                if spent + bound > max_cost:
                    return "ceiling"
                if spent + reserved + bound > max_cost:
                    return "wait"
            db.execute(
                "INSERT INTO claims VALUES(?, ?, ?, ?, ?, ?, ?)",
                (question.key, owner, _here(), os.getpid(), question.model, now + lease_s, bound),
            )
        return "mine"

    def _drop_dead(self, now: float) -> None:
        """Forget claims that lapsed, and those of processes of this machine that are gone."""
        self._db.execute("DELETE FROM claims WHERE until < ?", (now,))
        here = _here()
        for (pid,) in self._db.execute("SELECT DISTINCT pid FROM claims WHERE host = ?", (here,)).fetchall():
            if pid != os.getpid() and not _alive(pid):
                self._db.execute("DELETE FROM claims WHERE host = ? AND pid = ?", (here, pid))

    def release(self, key: str, owner: str) -> None:
        """Give a claim back without an answer."""
        with self._writing(durable=False) as db:
            db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner))

    def release_all(self, owner: str) -> None:
        """Give back whatever an owner still claims."""
        with self._writing(durable=False) as db:
            db.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def add(self, question: Question, reply: Reply, owner: str = "") -> None:
        """Store an answer that has just arrived, and end the claim, in one transaction."""
        q = question
        text = reply.text.encode("utf-8", "replace").decode("utf-8")
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO questions VALUES(?, ?, ?, ?, ?, ?)",
                (q.key, q.part, q.model, q.rubric, q.parameters, q.prompt),
            )
            db.execute(
                "INSERT INTO answers VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    *(uuid.uuid4().hex, q.key, self._clock(), text, reply.finish_reason),
                    *(reply.tokens_in, reply.tokens_out, reply.tokens_from, reply.served_by),
                ),
            )
            db.execute(
                "INSERT INTO spending VALUES(?, ?, ?) ON CONFLICT(model) DO UPDATE SET "
                "tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out",
                (q.model, reply.tokens_in, reply.tokens_out),
            )
            db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (q.key, owner))

    def merge(self, other: Path | str) -> Merged:
        """Take over another store's answers; twice changes nothing, and their cost is not counted here."""
        if not Path(other).is_file():
            raise TagsteerError(f"no store of judgements at {other}: give the .sqlite file of another run")
        before, seen = self._count(), 0
        try:
            with _reading(Path(other)) as theirs, self._writing() as db:
                _check_ours(theirs, other)
                for row in theirs.execute("SELECT * FROM questions"):
                    db.execute("INSERT OR IGNORE INTO questions VALUES(?, ?, ?, ?, ?, ?)", row)
                for row in theirs.execute("SELECT * FROM answers"):
                    seen += 1
                    db.execute("INSERT OR IGNORE INTO answers VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, 1)", row[:-1])
        except sqlite3.DatabaseError as error:
            raise _unusable(other, error) from error
        added = self._count() - before
        return Merged(added, seen - added)

    def _count(self) -> int:
        with self._lock:
            return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A store opened for reading alone, also where nothing can be written beside it."""
    mode = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
    db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=60)
    try:
        yield db
    finally:
        db.close()


def _check_ours(db: sqlite3.Connection, path: Path | str) -> None:
    (magic,) = db.execute("PRAGMA application_id").fetchone()
    if magic != _MAGIC:
        raise TagsteerError(
            f"{path} is a database of something else: give a file of judgements, or a new one"
        )


def _unusable(path: Path | str, error: sqlite3.Error) -> TagsteerError:
    return TagsteerError(
        f"cannot use {path} as a store of judgements: {error}; give another file on a local disk"
    )


@cache
def _here() -> str:
    """This machine, and on Linux the process namespace: process ids mean nothing in another container."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; where that cannot be asked, claims lapse by time alone."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
