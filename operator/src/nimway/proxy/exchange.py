"""One request, from its head to its last byte: read this file from top to bottom.

admit -> route -> (hold) -> choose -> connect -> send -> relay -> (retry) -> account. It decides by
asking the pure rooms (`admit`, `choose`, `ring`, `retry`, `health`) and touches no socket: the
client is a `Downstream`, the model server an `Upstream`. There is no task and no timer of its own.
"""

from typing import Final

from nimway.proxy import answers, hold, multipart
from nimway.proxy.admit import check_head
from nimway.proxy.answers import Answer
from nimway.proxy.catalog import Endpoint, Model
from nimway.proxy.choose import choose_least, select_fit, select_free
from nimway.proxy.downstream import Downstream
from nimway.proxy.framing import Framed
from nimway.proxy.health import is_failure
from nimway.proxy.heartbeat import Heartbeat
from nimway.proxy.host import Host
from nimway.proxy.local import answer_locally
from nimway.proxy.model_name import ModelNameError, read_model, replace_model
from nimway.proxy.paths import find_operation
from nimway.proxy.retry import may_retry
from nimway.proxy.route_key import choose_by_key
from nimway.proxy.upstream import Upstream
from nimway.proxy.wire import LAST_CHUNK, RequestHead, ResponseHead, build_request, build_response

_NEW: Final = 0
_HELD: Final = 1
_CONNECTING: Final = 2
_WAITING: Final = 3
_RELAYING: Final = 4
_DONE: Final = 5


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
    _held_at = 0.0
    _cause = ""
    _heartbeat: Heartbeat | None = None

    def __init__(self, host: Host, downstream: Downstream, head: RequestHead) -> None:
        self._host = host
        self._downstream = downstream
        self._head = head
        self._operation = find_operation(head.path)
        self.method = head.method
        self.started = host.now()
        host.exchanges += 1

    # Admit: the head is here, the body is not.

    def admit(self) -> Answer | None:
        """Return the refusal that the head calls for, or None."""
        return check_head(self._head, self._operation, self._host.settings, self._host)

    def refuse(self, answer: Answer) -> None:
        """Take note of an answer that the connection gives before `run`."""
        self.status = answer.status
        self.bytes_out = len(answer.body)
        self._finish()

    def run(self, body: bytes) -> None:
        """The body is here: answer what the proxy knows itself, route the rest."""
        operation = self._operation
        kind = operation.kind if operation is not None else ""
        if kind == "model":
            self._route(body)
        elif kind == "form":
            self._route_form(body)
        else:
            self._answer(answer_locally(kind, self._head.path, self._host))

    # Route: which model is meant.

    def _route_form(self, body: bytes) -> None:
        try:
            form = multipart.read_form_model(multipart.list_content_types(self._head.fields), body)
        except ModelNameError as error:
            self._answer(answers.bad_model(str(error)))
        else:
            self._route(body, form)

    def _route(self, body: bytes, form: multipart.FormModel | None = None) -> None:
        host = self._host
        self._touched = host.now()
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
                    body = multipart.replace_form_model(body, form, model.name)
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
        host, size = self._host, self._body_counted
        self._touched = now = host.now()
        self._cause = hold.BUSY if model.endpoints else hold.NOT_READY
        urgent = not model.endpoints and model.wake(now)
        refusal = hold.refuse(model, self._name, host, now, None if self._tried else size)
        if refusal is not None:
            host.meters.count_hold(model.name, self._cause, hold.REFUSED, 0.0)
            self._answer(refusal)
        else:
            self._join_room(model, size, now)
        if urgent:
            host.urge()

    def _join_room(self, model: Model, size: int, now: float) -> None:
        room = model.open_room()
        (room.rejoin if self._tried else room.join)(self, size)
        self._host.held_bytes += size
        if not self._held_at:
            self._held_at = now
            if self._head.heartbeat_s and hold.is_streaming(self._body):
                self._heartbeat = Heartbeat(self, self._head.heartbeat_s, now)
        self._state = _HELD
        model.in_flight -= 1
        model.queued += 1
        self._host.changed(model)

    def _leave_room(self, model: Model, outcome: str) -> None:
        host = self._host
        model.open_room().leave(self)
        host.held_bytes -= self._body_counted
        self._state = _NEW
        model.queued -= 1
        model.in_flight += 1
        host.meters.count_hold(model.name, self._cause, outcome, host.now() - self._touched)
        host.changed(model)

    def try_go(self) -> bool:
        """Go on, if an endpoint has a place for this request, or none is left to try."""
        model = self._model
        if model is None or not model.endpoints:
            return False
        fit = select_fit(model.endpoints, self._tried, self._host.now())
        if fit and not select_free(fit, model.limits.concurrency):
            return False
        self._leave_room(model, hold.RELEASED)
        self._touched = self._host.now()
        self._dispatch(model)
        return True

    def dismiss(self) -> None:
        """Answer a request that waits for a model that left the table."""
        self._give_up(hold.DISMISSED, answers.model_not_found(self._name))

    def _give_up(self, outcome: str, answer: Answer) -> None:
        if self._model is not None:
            self._leave_room(self._model, outcome)
        self._answer(answer)

    def _check_held(self, model: Model, now: float, *, late: bool) -> None:
        host, heartbeat = self._host, self._heartbeat
        if late or now - self._held_at > model.limits.queue_wait_s:
            self._give_up(hold.EXPIRED, hold.expire(model, self._name, host.settings, now))
            return
        if host.stopping and (now >= host.hold_until or not model.endpoints):
            self._give_up(hold.DRAINED, answers.draining(self._name))
            return
        if heartbeat is not None and now >= heartbeat.next_at:
            self._beat(heartbeat, now)
        if model.open_room().is_first(self):
            host.release(model)  # an ejection may have ended: that is no event

    # Choose and connect: an endpoint, and a connection to it.

    def _dispatch(self, model: Model) -> None:
        host = self._host
        if not model.endpoints:
            self._hold(model)
            return
        now = self._touched
        if model.plain:
            endpoint = choose_least(model.endpoints, self._tried, now, host.random())
        else:
            fit = select_fit(model.endpoints, self._tried, now)
            free = select_free(fit, model.limits.concurrency)
            if fit and not free:
                self._hold(model)
                return
            meant = choose_by_key(model, free, self._name, self._head, self._body)
            endpoint = meant or choose_least(free, (), now, host.random())
        if endpoint is None:
            self._answer_unreachable()
            return
        self._endpoint = endpoint
        endpoint.picks += 1
        endpoint.outstanding += 1
        if endpoint.health.ejected_until:
            endpoint.health.begin(now, self)
        while endpoint.idle:
            upstream = endpoint.idle.pop()
            if upstream.is_alive():
                self._send(upstream, endpoint)
                host.meters.overheads.observe(host.now() - now)
                return
            upstream.abort()  # at its end when picked: nothing was sent, no retry is spent
        self._state = _CONNECTING
        host.connect(endpoint, self)

    @property
    def timeout_connect_s(self) -> float:
        """How long connecting may take."""
        model = self._model
        return (self._host.settings if model is None else model.limits).timeout_connect_s

    def wants(self, endpoint: Endpoint) -> bool:
        """Return whether this request still waits for a connection to `endpoint`."""
        return self._state == _CONNECTING and self._endpoint is endpoint

    def on_connected(self, upstream: Upstream) -> None:
        """Send: the connection is there."""
        self._touched = self._host.now()
        self._send(upstream, upstream.endpoint)

    def on_connect_failed(self, *, ours: bool = False) -> None:
        """Retry: nothing was sent, another endpoint may have the request; `ours`: none can."""
        endpoint, model = self._endpoint, self._model
        if endpoint is None or model is None:
            return
        if ours:
            self._answer(answers.overloaded(1))
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
            self._touched = self._host.now()
            self._dispatch(model)
        else:
            self._answer_unreachable()

    def _answer_unreachable(self) -> None:
        self._answer(answers.unreachable(self._name, self._host.settings.retry_after_s))

    # Send.

    def _send(self, upstream: Upstream, endpoint: Endpoint) -> None:
        self._state = _WAITING
        self._upstream = upstream
        head, operation, body = self._head, self._operation, self._body
        assert operation is not None  # noqa: S101 # a routed request has one
        passed = head.credentials if self._host.settings.pass_authorization else ()
        self._body = b""
        upstream.send(
            self if self._heartbeat is None else self._heartbeat,
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
        if self._heartbeat is not None and self._heartbeat.is_open:
            self._event_stream = True
            self.on_body(pieces, b"", done=done)
            if self._downstream.paused:
                self.pause()
            return
        if pieces:
            self.watch(pieces, self._host.now, stream=head.event_stream)
        framing = self._plan_framing(head, done=done)
        parts = [build_response(head, self._head.request_id, framing)]
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
        if self._paused:
            self.resume()  # or the next request on this connection would wait for this client
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
        self._drop_upstream()
        self._finish()
        if self._event_stream:
            self._write_last(frame)
        else:
            self._downstream.abort()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def fail_stream(self, answer: Answer, *, done: bool) -> None:
        """End a stream that a heartbeat began: the model server answered with an error."""
        self._judge(failed=is_failure(answer.status))
        if done:
            self._upstream = None  # its connection waits for the next request already
        self._answer(answer)

    def cancel(self) -> None:
        """The client is gone: so is the request, wherever it is."""
        if self._state == _DONE:
            return
        self._host.meters.cancels += 1
        self._drop_upstream()
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
        limits = model.limits
        total_s = min(self._head.timeout_s or limits.timeout_total_s, limits.timeout_total_s)
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
            self._answer_unreachable()
        elif self._state == _HELD:
            self._check_held(model, now, late=late)

    # Account: every way out leads through here, once.

    def _answer(self, answer: Answer) -> None:
        self._drop_upstream()
        self.status = answer.status
        self.bytes_out += len(answer.body)
        self._finish()
        if self._heartbeat is not None and self._heartbeat.is_open:
            self._write_last(answers.build_event(answer.body))
        else:
            self._downstream.answer(answer, self._head.request_id)

    def _finish(self) -> None:
        if self._state == _DONE:
            return
        host, model = self._host, self._model
        if self._state == _HELD and model is not None:
            self._leave_room(model, hold.LEFT)
        self._state = _DONE
        host.exchanges -= 1
        if self._body_counted:
            host.bodies_bytes -= self._body_counted
            self._body_counted = 0
            self._body = b""
        self._release_endpoint()
        if model is not None:
            model.in_flight -= 1
            if not model.dirty:
                host.changed(model)
            if model.room:
                host.release(model)
        label = self._operation.label if self._operation is not None else ""
        host.meters.account(self, model, label, self._head, host.now())

    def _release_endpoint(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.outstanding -= 1
            if endpoint.health.probe is self:
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
            endpoint.ejections += 1
            host.meters.ejections += 1
