"""A web server that makes videos: progress as server-sent events, then the video. Who leaves takes their job along.

    python examples/web_server.py [--model FOLDER] [--port 8000] [--socket PATH]

    curl -N -X POST localhost:8000/videos -H 'Content-Type: application/json' -d '{"prompt": "a red ball"}'

Without --socket it runs jobs itself, in contained workers; with it, it hands them to a `wan-compat serve`, so that
several servers share one machine's memory fairly. It listens on the loopback interface: who may ask is for a proxy to
decide.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from wan_compat import AsyncJob, AsyncSupervisor, GenerationRequest
from wan_compat.protocol.errors import QueueFull, WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.demo import demo_model


class Wish(BaseModel):
    """What a stranger may ask for. Everything else, the model and all paths above all, is the server's to say."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=2000)
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    num_frames: int = Field(default=9, ge=1, le=81)
    num_inference_steps: int = Field(default=4, ge=1, le=50)


def make_app(model: str, socket: str | None = None, width: int = 160, height: int = 96) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Leaving ends all workers, whatever they are doing; and the videos go with their folder.
        supervisor = await AsyncSupervisor.connect(socket) if socket else AsyncSupervisor(workers=1, max_queued=20)
        with tempfile.TemporaryDirectory(prefix="videos-") as folder:
            async with supervisor:
                app.state.supervisor, app.state.folder = supervisor, Path(folder)
                yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(WanCompatError)
    async def refuse(request: Request, error: WanCompatError) -> JSONResponse:
        return JSONResponse(error.to_json(), 503 if isinstance(error, QueueFull) else 400)

    @app.post("/videos")
    async def make(wish: Wish) -> StreamingResponse:
        name = secrets.token_urlsafe(16)  # whoever knows it may fetch the video
        request = GenerationRequest(
            model=model,
            output=str(app.state.folder / f"{name}.mp4"),
            width=width,
            height=height,
            timeout_s=600,
            **wish.model_dump(),
        )
        # With a served supervisor: the job also ends if this whole server does.
        job = await app.state.supervisor.submit(request, label="web", cancel_on_disconnect=True)
        return StreamingResponse(
            follow(job, name), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @app.get("/videos/{name}")
    async def fetch(name: str) -> FileResponse:
        path = app.state.folder / f"{name}.mp4"
        if path.parent != app.state.folder or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        now = await app.state.supervisor.status()
        return {"running": len(now.running), "queued": now.queued_count, "workers": len(now.workers)}

    return app


async def follow(job: AsyncJob, name: str) -> AsyncIterator[str]:
    """Tell a job's events. When the client leaves, the server stops reading here, and `cancel_job` ends the job."""
    yield message("job", id=job.id)
    async with contextlib.aclosing(job.events(cancel_job=True)) as events:
        async for event in events:
            match event:
                case ev.PhaseStarted(phase=phase):
                    yield message("phase", phase=phase)
                case ev.Progress(phase=phase, step=step, total=total, eta_s=eta_s):
                    yield message("progress", phase=phase, step=step, total=total, eta_s=eta_s)
                case ev.Recovering(error=error, action=action):
                    yield message("recovering", error=error, action=action)
                case ev.Finished():
                    yield message("done", url=f"/videos/{name}")
                case ev.Ended(error=error):
                    # Codes and texts are made for people; paths of the server in them may not be.
                    yield message("failed", code=error.code, title=error.title)


def message(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(fields)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make videos over HTTP.")
    parser.add_argument("--model", help="folder of a model; the one that comes along by default")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--socket", help="where `wan-compat serve` runs jobs; by default they run here")
    options = parser.parse_args()
    app = make_app(options.model or demo_model(), options.socket)
    uvicorn.run(app, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
