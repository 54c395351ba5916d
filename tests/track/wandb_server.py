"""A W&B server of one's own: as much of it as wandb asks for, kept in memory, with the rows each run was sent.

Its rules are those that wandb's client relies on: a run is made by UpsertBucket, which tells how many rows it has;
the rows of a file_stream lie from ``offset`` on, in place of what was there.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "a" * 40


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        """A client that went away is nothing to tell of."""


class Server:
    """``with Server() as server:``; ``runs``: id → what it was sent; ``views``: dashboards; ``asked``: operations."""

    def __init__(self):
        self.runs, self.views, self.asked = {}, {}, []
        self.http = Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"home": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    # --- What is asked

    def viewer(self, asked):
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def UpsertBucket(self, asked):  # noqa: N802
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], {"history": [], "summary": {}, "exit": None, "sessions": 0})
        run["sessions"] += asked["id"] is None
        run.update({key: value for key, value in asked.items() if value is not None})
        bucket = self.bucket(run)
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def RunResumeStatus(self, asked):  # noqa: N802
        run = self.runs.get(asked["name"])
        bucket = None if run is None else self.bucket(run)
        return {"model": {"id": "p", "name": asked["project"], "entity": ENTITY, "bucket": bucket}}

    def Runs(self, asked):  # noqa: N802
        if not self.runs:
            return {"project": None}
        groups = json.loads(asked["filters"])["group"]["$in"]
        found = [self.bucket(run) for run in self.runs.values() if run["groupName"] in groups]
        edges = [{"node": {"projectId": 1, **node}, "cursor": node["name"]} for node in found]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"internalId": "1", "runCount": len(found), "runs": {"edges": edges, "pageInfo": page}}}

    def CreateRunFiles(self, asked):  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def UpsertView2(self, asked):  # noqa: N802
        self.views[asked["name"]] = asked
        return {"upsertView": {"view": {"id": "w" + asked["name"], "name": asked["name"]}, "inserted": True}}

    def bucket(self, run):
        return {
            "id": "x" + run["name"], "name": run["name"], "displayName": run["displayName"], "sweepName": None,
            "project": {"id": "p", "name": run["project"], "entity": ENTITY}, "description": None, "notes": None,
            "config": run["config"], "tags": run["tags"], "state": "finished", "group": run["groupName"],
            "jobType": run["jobType"], "summaryMetrics": json.dumps(run["summary"]), "systemMetrics": "{}",
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "wandbConfig": json.dumps({"t": {"1": []}}), "user": {"name": "me", "username": "me"}, "historyKeys": None,
            "commit": None, "readOnly": False, "createdAt": None, "heartbeatAt": None,
        }  # fmt: skip

    def stream(self, name, sent):
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"]]
            if "history" in file:
                run["history"][chunk["offset"] :] = rows
            elif "summary" in file:
                run["summary"] = rows[-1]
        if sent.get("complete"):
            run["exit"] = sent["exitcode"]


ENTITY = {"id": "e", "name": "me"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    home: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = {}
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = found[1] if found and hasattr(self.home, found[1]) else "viewer"
            self.home.asked.append(name)
            answer = {"data": getattr(self.home, name)(asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.home.stream(self.path.split("/")[-2], json.loads(body))
        self.send_response(200)
        data = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_GET = do_POST  # noqa: N815

    def log_message(self, *words):
        pass
