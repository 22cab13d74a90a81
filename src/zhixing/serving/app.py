"""The application: every route in one place, errors in one form, an OpenAPI schema that says what the code does."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from zhixing import __version__
from zhixing.decoding.engine import DrainingError
from zhixing.decoding.fair_queue import QueueFullError
from zhixing.decoding.ticket import RequestCancelledError, TimedOutError
from zhixing.errors import InputError
from zhixing.serving import answers, attention, batches, completions
from zhixing.serving.guard import State
from zhixing.serving.metrics import CONTENT_TYPE, exposition
from zhixing.serving.problems import ApiError, as_api_error, invalid_body
from zhixing.serving.service import Service, answer, as_json
from zhixing.serving.wire import (
    ID_PATTERN,
    AlignRequest,
    AttentionRequest,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingsRequest,
    ExplainRequest,
    LoadRequest,
    SummarizeRequest,
    TokenizeRequest,
    TranslateRequest,
)

PAGE = FilePath(__file__).parent / "page"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": answers.ErrorAnswer, "description": told}
    for code, told in (
        (400, "Something in the request cannot be used."), (401, "The API key is missing or wrong."),
        (403, "Not for this host, origin or server."), (404, "There is no such model."),
        (408, "The request came too slowly."), (413, "The body is too large."), (415, "The body is not JSON."),
        (429, "The queue is full; come again after Retry-After seconds."), (500, "An error of ours."),
        (503, "The server is about to stop."), (504, "It took too long."),
    )
}  # fmt: skip
REFUSED: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (401, 403, 429, 500, 503)}
STREAMED = {"text/event-stream": {"schema": {"type": "string"}}}
ModelName = Annotated[str, Path(pattern=ID_PATTERN)]
FirstLine = Annotated[int, Query(ge=0, le=2**31 - 1, description="So many lines are known already.")]


def make_app(service: Service, *, page: FilePath = PAGE, keyed: bool = False) -> FastAPI:
    """`page` is a folder of static files, shown at / where it has an index.html."""
    app = FastAPI(
        title="zhixing", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    _errors(app, service.state)
    _state_routes(app, service)
    _model_routes(app, service)
    _writing_routes(app, service)
    _batch_routes(app, service)
    schema = _schema(app, keyed)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return answer(schema)

    if (page / "index.html").is_file():
        _page(app, page)
    return app


# ---- errors


def _errors(app: FastAPI, state: State) -> None:
    async def told(request: Request, error: Exception) -> Response:
        problem = as_api_error(error, stopping=state.draining)
        return Response(as_json(problem.to_dict()), problem.status, problem.headers, "application/json")

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: ("there is nothing at this address", "not_found"),
                 405: ("this address takes other methods", "method_not_allowed")}  # fmt: skip
        message, code = known.get(error.status_code, ("the request cannot be read", "bad_request"))
        return await told(request, ApiError(error.status_code, message, code=code, headers=error.headers))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        dependant: Any = getattr(request.scope.get("route"), "dependant", None)
        known = [name for p in getattr(dependant, "body_params", ()) for name in p.field_info.annotation.model_fields]
        return await told(request, invalid_body(error.errors(), known))

    expected = (ApiError, InputError, QueueFullError, DrainingError, TimedOutError, RequestCancelledError, TimeoutError)
    for kind in (*expected, Exception):  # of the last the guard hears too, and logs it
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


# ---- routes


def _state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=answers.Status, responses={403: ERRORS[403]}, tags=["state"],
             summary="Whether the server runs")  # fmt: skip
    async def health() -> Response:
        return answer({"status": "ok"})

    draining: dict[int | str, dict[str, Any]] = {503: {"model": answers.Status, "description": "It is about to stop."}}

    @app.get("/ready", response_model=answers.Status, responses={**REFUSED, **draining}, tags=["state"],
             summary="Whether it takes requests")  # fmt: skip
    async def ready() -> Response:
        if service.state.draining:
            return Response(as_json({"status": "draining"}), 503, media_type="application/json")
        return answer({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse, responses=REFUSED, tags=["state"],
             summary="Counts, for Prometheus")  # fmt: skip
    async def metrics() -> Response:
        engines = [(hosted.id, hosted.engine.metrics()) for hosted in service.library.models]
        text = exposition(service.state.counts, service.state.in_flight, engines)
        return Response(text, media_type=CONTENT_TYPE)


def _model_routes(app: FastAPI, service: Service) -> None:
    library = service.library

    @app.get("/v1/models", response_model=answers.ModelList, responses=REFUSED, tags=["models"],
             summary="The models that are loaded")  # fmt: skip
    async def models() -> Response:
        return answer({"object": "list", "data": [hosted.card() for hosted in library.models]})

    @app.get("/v1/models/{model}", response_model=answers.ModelCard, responses=_with(400, 404), tags=["models"],
             summary="One of them")  # fmt: skip
    async def model(model: ModelName) -> Response:
        return answer(library.get(model).card())

    @app.get("/v1/runs", response_model=answers.RunList, responses=REFUSED, tags=["models"],
             summary="The folders that may be loaded")  # fmt: skip
    async def runs() -> Response:
        found = await service.prepared(library.folders)
        return answer({"object": "list", "data": [{"id": name, "loaded": loaded} for name, loaded in found]})

    @app.get("/v1/trainings", response_model=answers.TrainingList, responses=REFUSED, tags=["trainings"],
             summary="The training runs of the server's folder, and where each stands")  # fmt: skip
    async def trainings() -> Response:
        found = await service.prepared(service.trainings.listed)
        watching = service.trainings.folder is not None
        return answer({"object": "list", "watching": watching, "data": found})

    @app.get("/v1/trainings/{run}", response_model=answers.TrainingLines, responses=_with(400, 404),
             tags=["trainings"], summary="What one has measured, from a line on")  # fmt: skip
    async def training(run: ModelName, start: FirstLine = 0) -> Response:
        return answer(await service.prepared(lambda: service.trainings.lines(run, start)))

    @app.post("/v1/models", response_model=answers.ModelCard, responses={**ERRORS, 409: ERRORS[400]}, tags=["models"],
              summary="Load a folder of the server's root")  # fmt: skip
    async def load(asked: LoadRequest) -> Response:
        hosted = await service.loaded(lambda: library.load(asked.model))
        return answer(hosted.card())

    @app.delete("/v1/models/{model}", response_model=answers.Deleted, responses=_with(400, 404), tags=["models"],
                summary="Unload a model")  # fmt: skip
    async def unload(model: ModelName) -> Response:
        if library.root is None:
            raise ApiError(403, "this server unloads no models; start it with --root FOLDER", code="no_root")
        await service.loaded(lambda: library.unload(model))
        return answer({"id": model, "object": "model", "deleted": True})


def _writing_routes(app: FastAPI, service: Service) -> None:
    told = "The answer, or a stream of its parts."
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": STREAMED, "description": told}}

    @app.post("/v1/completions", response_model=answers.Completion, responses={**ERRORS, **streamed}, tags=["writing"],
              summary="Go on with a text")  # fmt: skip
    async def complete(request: Request, asked: CompletionRequest) -> Response:
        return await completions.complete(service, request, asked)

    @app.post("/v1/chat/completions", response_model=answers.ChatCompletion, responses={**ERRORS, **streamed},
              tags=["writing"], summary="Reply, go on, translate, summarize or classify")  # fmt: skip
    async def chat(request: Request, asked: ChatRequest) -> Response:
        return await completions.chat(service, request, asked)

    @app.post("/tokenize", response_model=answers.Tokenized, responses=ERRORS, tags=["writing"],
              summary="The ids of a text")  # fmt: skip
    async def tokenize(request: Request, asked: TokenizeRequest) -> Response:
        return await batches.tokenize(service, request, asked)


def _batch_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/translate", response_model=answers.Rewrites, responses=ERRORS, tags=["batches"],
              summary="Translate texts")  # fmt: skip
    async def translate(request: Request, asked: TranslateRequest) -> Response:
        return await batches.rewrite(service, request, asked)

    @app.post("/v1/summarize", response_model=answers.Rewrites, responses=ERRORS, tags=["batches"],
              summary="Summarize texts")  # fmt: skip
    async def summarize(request: Request, asked: SummarizeRequest) -> Response:
        return await batches.rewrite(service, request, asked)

    @app.post("/v1/align", response_model=answers.Aligned, responses=ERRORS, tags=["batches"],
              summary="What was read for each token of a translation")  # fmt: skip
    async def align(request: Request, asked: AlignRequest) -> Response:
        return await batches.align(service, request, asked)

    @app.post("/v1/attention", response_model=answers.Attended, responses=ERRORS, tags=["batches"],
              summary="Where each head of a model looks")  # fmt: skip
    async def attend(request: Request, asked: AttentionRequest) -> Response:
        return await attention.attention(service, request, asked)

    @app.post("/v1/classify", response_model=answers.Predictions, responses=ERRORS, tags=["batches"],
              summary="Say what texts are")  # fmt: skip
    async def classify(request: Request, asked: ClassifyRequest) -> Response:
        return await batches.classify(service, request, asked)

    @app.post("/v1/explain", response_model=answers.Explained, responses=ERRORS, tags=["batches"],
              summary="Why a classifier says so")  # fmt: skip
    async def explain(request: Request, asked: ExplainRequest) -> Response:
        return await batches.explain(service, request, asked)

    @app.post("/v1/embeddings", response_model=answers.Embeddings, responses=ERRORS, tags=["batches"],
              summary="Vectors of texts")  # fmt: skip
    async def embeddings(request: Request, asked: EmbeddingsRequest) -> Response:
        return await batches.embeddings(service, request, asked)


def _with(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {**REFUSED, **{code: ERRORS[code] for code in codes}}


def _schema(app: FastAPI, keyed: bool) -> dict[str, Any]:
    """FastAPI's, without its 422, which is a 400 here, and with the key where there is one."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            if keyed and operation.get("tags") and operation["summary"] != "Whether the server runs":
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    if keyed:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema


# ---- the page


class _Page:
    """Static files with the page's headers."""

    def __init__(self, folder: FilePath) -> None:
        self._files = StaticFiles(directory=folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await self._files(scope, receive, sent)


def _page(app: FastAPI, folder: FilePath) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(folder / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", _Page(folder))
