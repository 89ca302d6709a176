"""One request, from its head to its last byte: read this file from top to bottom.

admit -> route -> (hold) -> choose -> connect -> send -> relay -> (retry) -> account. It decides by
asking the pure rooms (`admit`, `choose`, `ring`, `retry`, `health`) and touches no socket: the
client is a `Downstream`, the model server an `Upstream`. There is no task and no timer of its own.
"""

from nimway.proxy import answers
from nimway.proxy.admit import check_head
from nimway.proxy.answers import Answer
from nimway.proxy.catalog import Endpoint, Model
from nimway.proxy.choose import choose_least, select_fit, select_free
from nimway.proxy.downstream import Downstream
from nimway.proxy.framing import Framed
from nimway.proxy.health import is_failure
from nimway.proxy.host import Host
from nimway.proxy.model_name import ModelNameError, read_model, replace_model
from nimway.proxy.multipart import (
    FormModel,
    list_content_types,
    read_form_model,
    replace_form_model,
)
from nimway.proxy.paths import find_operation, read_model_id
from nimway.proxy.retry import may_retry
from nimway.proxy.route_key import read_key
from nimway.proxy.upstream import Upstream
from nimway.proxy.wire import LAST_CHUNK, RequestHead, ResponseHead, build_request, build_response
from nimway.routes import LEAST_REQUESTS

_NEW, _HELD, _CONNECTING, _WAITING, _RELAYING, _DONE = range(6)


class Exchange(Framed):
    """The life of one request; `method` is what the model server is asked with."""

    # Defaults stand at the class: most requests set few of them, and an assignment each costs.
    _state = _NEW
    _model: Model | None = None
    _endpoint: Endpoint | None = None
    _upstream: Upstream | None = None
    _body = b""
    _body_counted = 0
    _name = ""
    _tried: tuple[Endpoint, ...] = ()
    _event_stream = False
    _paused = False
    _moved = False
    _touched = 0.0

    def __init__(self, host: Host, downstream: Downstream, head: RequestHead) -> None:
        self._host = host
        self._downstream = downstream
        self._head = head
        self._operation = find_operation(head.path)
        self.method = head.method
        self.started = host.now()
        host.exchanges.add(self)

    # Admit: the head is here, the body is not.

    def admit(self) -> Answer | None:
        """Return the refusal that the head calls for, or None."""
        return check_head(self._head, self._operation, self._host.settings, self._host)

    def refuse(self, answer: Answer) -> None:
        """Take note of an answer that the connection gives before `run`."""
        self.status = answer.status
        self._finish()

    def run(self, body: bytes) -> None:
        """The body is here: answer what the proxy knows itself, route the rest."""
        operation = self._operation
        kind = operation.kind if operation is not None else ""
        if kind == "model":
            self._route(body)
        elif kind == "form":
            self._route_form(body)
        elif kind == "models":
            self._answer(Answer(200, self._host.catalog.listing))
        elif kind == "model-card":
            self._answer(self._find_card())
        elif kind == "ready":
            self._answer(answers.OK_READY if self._host.ready else answers.NOT_READY)
        else:
            self._answer(answers.OK_LIVE)

    def _find_card(self) -> Answer:
        name = read_model_id(self._head.path)
        card = None if name is None else self._host.catalog.encode_card(name)
        return answers.model_not_found(name or "") if card is None else Answer(200, card)

    # Route: which model is meant.

    def _route_form(self, body: bytes) -> None:
        try:
            form = read_form_model(list_content_types(self._head.fields), body)
        except ModelNameError as error:
            self._answer(answers.bad_model(str(error)))
            return
        self._route(body, form)

    def _route(self, body: bytes, form: FormModel | None = None) -> None:
        host = self._host
        try:
            name = read_model(body) if form is None else form.name
            model = host.catalog.names.get(name)
            if model is None:
                self._answer(answers.model_not_found(name))
                return
            if name != model.name and name not in model.route.adapters:
                if form is None:
                    body = replace_model(body, model.name)
                else:
                    body = replace_form_model(body, form, model.name)
        except ModelNameError as error:
            self._answer(answers.bad_model(str(error)))
            return
        if not model.plain and not self._is_allowed(model, name):
            return
        self._model = model
        self._name = name
        model.demand_total += 1
        model.in_flight += 1
        if not model.dirty:
            host.changed(model)
        host.budget.requests += 1
        self._body = body
        self._body_counted = len(body)
        host.bodies_bytes += len(body)
        if model.room:
            self._hold(model)
        else:
            self._dispatch(model)

    def _is_allowed(self, model: Model, name: str) -> bool:
        """Return whether the model has this API; answer if not."""
        apis, operation = model.limits.apis, self._operation
        if not apis or operation is None or operation.api in apis:
            return True
        self._answer(answers.api_not_allowed(name, operation.api, sorted(apis)))
        return False

    # Hold: until there is a place, in the order of arrival; events let go, the sweep expires.

    def _hold(self, model: Model) -> None:
        host, limits, room = self._host, model.limits, model.open_room()
        size = self._body_counted
        if self._tried:
            room.rejoin(self, size)
        elif not room.join(
            self,
            size,
            requests_max=limits.queue_requests,
            bytes_max=host.settings.queue_bytes_max,
        ):
            self._answer(answers.queue_full(self._name, host.settings.retry_after_s))
            return
        self._state = _HELD
        self._touched = host.now()
        model.in_flight -= 1
        model.queued += 1
        host.changed(model)

    def _leave_room(self, model: Model) -> None:
        model.open_room().leave(self)
        self._state = _NEW
        model.queued -= 1
        model.in_flight += 1
        host = self._host
        host.changed(model)

    def try_go(self) -> bool:
        """Go on, if an endpoint has a place for this request; the room asks."""
        model = self._model
        if model is None:
            return False
        fit = select_fit(model.endpoints, self._tried, self._host.now())
        if not select_free(fit, model.limits.concurrency):
            return False
        self._leave_room(model)
        self._dispatch(model)
        return True

    def dismiss(self) -> None:
        """Answer a request that waits for a model that left the table."""
        self._answer(answers.model_not_found(self._name))

    # Choose and connect: an endpoint, and a connection to it.

    def _dispatch(self, model: Model) -> None:
        host = self._host
        if not model.endpoints:
            self._answer(answers.model_not_ready(self._name, host.settings.retry_after_s))
            return
        self._touched = now = host.now()
        if model.plain:
            endpoint = choose_least(model.endpoints, self._tried, now, host.random())
        else:
            fit = select_fit(model.endpoints, self._tried, now)
            free = select_free(fit, model.limits.concurrency)
            if fit and not free:
                self._hold(model)
                return
            endpoint = self._choose_by_key(model, free) or choose_least(
                free, (), now, host.random()
            )
        if endpoint is None:
            self._answer(answers.unreachable(self._name, host.settings.retry_after_s))
            return
        self._endpoint = endpoint
        endpoint.outstanding += 1
        if endpoint.health.ejected_until:
            endpoint.health.begin(now)
        while endpoint.idle:
            upstream = endpoint.idle.pop()
            if upstream.is_alive():
                self._send(upstream, endpoint)
                return
            upstream.abort()  # at its end when picked: nothing was sent, no retry is spent
        self._state = _CONNECTING
        host.connect(endpoint, self)

    def _choose_by_key(self, model: Model, free: list[Endpoint]) -> Endpoint | None:
        """Return the endpoint meant for the request's session or prefix, where that decides."""
        strategy = model.limits.strategy
        if strategy == LEAST_REQUESTS or len(free) < 2:  # noqa: PLR2004 # no choice
            return None
        key = read_key(strategy, self._name, self._head, self._body)
        return None if key is None else model.ring().choose(key, free)

    @property
    def timeout_connect_s(self) -> float:
        """How long connecting may take."""
        model = self._model
        return (
            self._host.settings.timeout_connect_s
            if model is None
            else model.limits.timeout_connect_s
        )

    def wants(self, endpoint: Endpoint) -> bool:
        """Return whether this request still waits for a connection to `endpoint`."""
        return self._state == _CONNECTING and self._endpoint is endpoint

    def on_connected(self, upstream: Upstream) -> None:
        """Send: the connection is there."""
        self._touched = self._host.now()
        self._send(upstream, upstream.endpoint)

    def on_connect_failed(self) -> None:
        """Retry: nothing was sent, so another endpoint may have the request."""
        endpoint, model = self._endpoint, self._model
        if endpoint is None or model is None:
            return
        self._judge(failed=True)
        self._release_endpoint()
        self._tried = (*self._tried, endpoint)
        more = may_retry(
            bytes_sent=False,
            bytes_received=False,
            tries=len(self._tried),
            retries_max=model.limits.retries,
        )
        if more and self._host.budget.take():
            self._host.meters.retries += 1
            self._dispatch(model)
        else:
            retry_after_s = self._host.settings.retry_after_s
            self._answer(answers.unreachable(self._name, retry_after_s))

    # Send.

    def _send(self, upstream: Upstream, endpoint: Endpoint) -> None:
        self._state = _WAITING
        self._upstream = upstream
        head, operation, body = self._head, self._operation, self._body
        assert operation is not None  # noqa: S101 # a routed request has one
        passed = head.authorization if self._host.settings.pass_authorization else None
        self._body = b""
        upstream.send(
            self,
            build_request(head, operation.path, endpoint.authority, len(body), passed),
            body,
        )

    # Relay: the answer, as it comes.

    def on_head(self, head: ResponseHead, pieces: list[bytes], *, done: bool) -> None:
        """Pass on the head and what came with it."""
        if self._state != _WAITING:
            return
        self._state = _RELAYING
        self.status = head.status
        self._moved = True
        self.first_byte_at = self._host.now()
        self._host.bodies_bytes -= self._body_counted
        self._body_counted = 0
        self._judge(failed=is_failure(head.status))
        self._event_stream = head.event_stream
        if head.event_stream and pieces:
            self.watch(pieces, self._host.now, stream=True)
        elif pieces:
            self.tail = pieces[-1]
        framing = self._plan_framing(head, done=done)
        request_id = self._head.request_id
        parts = [build_response(head, request_id, framing)]
        size = self._frame(pieces, parts)
        if done:
            self._upstream = None
            self._downstream.write(parts, size)
            self._complete()
            return
        self._downstream.write(parts, size)
        if self._downstream.paused:
            self.pause()

    def on_body(self, pieces: list[bytes], trailers: bytes, *, done: bool) -> None:
        """Pass on more of the body; end it cleanly if that was all."""
        if self._state != _RELAYING:
            return
        self._moved = True
        parts: list[bytes] = []
        if pieces:
            self.watch(pieces, self._host.now, stream=self._event_stream)
        size = self._frame(pieces, parts)
        if not done:
            self._downstream.write(parts, size)
            return
        self._upstream = None
        if self._chunked:
            parts.append(b"0\r\n%b\r\n" % trailers if trailers else LAST_CHUNK)
        if parts:
            self._downstream.write(parts, size)
        self._complete()

    def _complete(self) -> None:
        self._finish()
        self._downstream.finish(keep_alive=self._keep_alive)

    # The ways it can go wrong.

    def on_lost(self, *, malformed: bool) -> None:
        """The model server ended, or broke the rules, before the end of its answer."""
        self._upstream = None
        if self._state == _WAITING:
            self._judge(failed=True)
            self._answer(answers.BAD_RESPONSE if malformed else answers.BAD_GATEWAY)
        elif self._state == _RELAYING:
            self._break_off(answers.STREAM_BROKEN)

    def _break_off(self, frame: bytes) -> None:
        """End an answer whose head is out: never so that it looks complete."""
        self._host.meters.broken += 1
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        self._finish()
        if not self._event_stream:
            self._downstream.abort()
            return
        parts: list[bytes] = []
        self._downstream.write(parts, self._frame([frame], parts))
        self._downstream.cut()

    def cancel(self) -> None:
        """The client is gone: so is the request, wherever it is."""
        if self._state == _DONE:
            return
        self._host.meters.cancels += 1
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        self.status = self.status or 499
        self._finish()

    def pause(self) -> None:
        """The client does not keep up: read no more from the model server."""
        if self._upstream is not None and not self._paused:
            self._paused = True
            self._upstream.pause()

    def resume(self) -> None:
        """The client took everything: read on."""
        self._moved = True
        if self._paused:
            self._paused = False
            if self._upstream is not None:
                self._upstream.resume()

    def check(self, now: float) -> None:
        """Apply the timeouts; called by the sweep."""
        model = self._model
        if model is None:
            return
        limits, retry_after_s = model.limits, self._host.settings.retry_after_s
        total_s = limits.timeout_total_s
        if self._head.timeout_s:
            total_s = min(total_s, self._head.timeout_s)
        late = now - self.started > total_s
        if self._state == _RELAYING:
            if self._moved:
                self._moved = False
                self._touched = now
            if late or now - self._touched > limits.timeout_idle_s:
                self._break_off(answers.STREAM_TIMEOUT)
        elif self._state == _WAITING:
            if late or now - self._touched > limits.timeout_first_byte_s:
                self._judge(failed=not late)
                self._answer(answers.GATEWAY_TIMEOUT)
        elif self._state == _CONNECTING and late:
            self._answer(answers.unreachable(self._name, retry_after_s))
        elif self._state == _HELD:
            room = model.open_room()
            if late or now - self._touched > limits.queue_wait_s:
                self._answer(answers.queue_timeout(self._name, retry_after_s))
            elif room.is_first(self):
                room.release()  # an ejection may have ended: that is no event

    # Account: every way out leads through here, once.

    def _answer(self, answer: Answer) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        self.status = answer.status
        self.bytes_out = len(answer.body)
        self._finish()
        self._downstream.answer(answer, self._head.request_id)

    def _finish(self) -> None:
        if self._state == _DONE:
            return
        host, model = self._host, self._model
        if self._state == _HELD and model is not None:
            self._leave_room(model)
        self._state = _DONE
        host.exchanges.discard(self)
        host.bodies_bytes -= self._body_counted
        self._body_counted = 0
        self._body = b""
        self._release_endpoint()
        if model is not None:
            model.in_flight -= 1
            if not model.dirty:
                host.changed(model)
            if model.room:
                model.room.release()
        label = self._operation.label if self._operation is not None else ""
        host.meters.account(self, model, label, self._head, host.now())

    def _release_endpoint(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.outstanding -= 1
            if endpoint.health.probing:
                endpoint.health.release()

    def _judge(self, *, failed: bool) -> None:
        """Tell the endpoint's health how the request went."""
        endpoint, host = self._endpoint, self._host
        if endpoint is None:
            return
        health = endpoint.health
        if not failed:
            if health.failures or health.ejections:
                health.succeed()
        elif health.fail(host.now(), host.random(), host.settings):
            host.meters.ejections += 1
