from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway import routes
from nimway.routes import Policy, Route, RoutesError, build_table, decode, encode

LLAMA = Route(
    namespace="models",
    name="llama",
    model="meta/llama-3.1-8b-instruct",
    names=("meta/llama-3.1-8b-instruct", "llama"),
    service="llama",
    created_s=1_790_000_000,
)
EMBED = replace(LLAMA, name="embed", model="nvidia/embed", names=("nvidia/embed",), service="e")

label = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
count = st.none() | st.integers(0, 9)
served = st.text(min_size=1, max_size=12)
some_routes = st.lists(
    st.builds(
        Route,
        namespace=label,
        name=label,
        model=served,
        names=st.just(()),
        service=label,
        created_s=st.integers(0, 2**33),
        policy=st.builds(
            Policy,
            strategy=st.sampled_from(routes.STRATEGIES),
            timeout_connect_s=count,
            timeout_total_s=count,
            max_concurrency=count,
            queue_requests_max=count,
            queue_wait_max_s=count,
            retries=st.integers(0, 9),
            apis=st.lists(st.sampled_from(["chat", "completions"]), unique=True).map(tuple),
        ),
        cold_start_s=st.integers(0, 2**20),
        ready_path=st.sampled_from(["/v1/health/ready", "/healthz", ""]),
    ),
    unique_by=lambda route: route.key,
    max_size=6,
)


def test_the_config_map_reads_well_and_is_stable() -> None:
    assert encode(build_table([LLAMA]))["routes.json"] == (
        "{\n"
        ' "models/llama": {\n'
        '  "model": "meta/llama-3.1-8b-instruct",\n'
        '  "names": [\n'
        '   "meta/llama-3.1-8b-instruct",\n'
        '   "llama"\n'
        "  ],\n"
        '  "service": "llama",\n'
        '  "created": 1790000000\n'
        " }\n"
        "}\n"
    )


@given(some_routes)
def test_what_is_encoded_is_decoded(given_routes: list[Route]) -> None:
    table = build_table(given_routes)
    assert decode(encode(table)) == table


@given(some_routes, st.randoms())
def test_order_does_not_change_bytes_or_revision(given_routes: list[Route], random: Random) -> None:
    shuffled = list(given_routes)
    random.shuffle(shuffled)
    assert encode(build_table(shuffled)) == encode(build_table(given_routes))


def test_any_change_of_a_route_changes_the_revision() -> None:
    revisions = {
        build_table([route]).revision
        for route in (
            LLAMA,
            replace(LLAMA, model="other"),
            replace(LLAMA, names=("llama",)),
            replace(LLAMA, service="other"),
            replace(LLAMA, created_s=1),
            replace(LLAMA, namespace="other"),
            replace(LLAMA, name="other"),
            replace(LLAMA, adapters=("lora",)),
            replace(LLAMA, policy=Policy(retries=0)),
            replace(LLAMA, cold_start_s=90),
            replace(LLAMA, ready_path="/healthz"),
        )
    }
    assert len(revisions) == 11


def test_a_policy_shows_only_what_is_not_as_by_default() -> None:
    text = encode(build_table([replace(LLAMA, policy=Policy(max_concurrency=8))]))["routes.json"]
    assert '"policy": {\n   "max_concurrency": 8\n  }' in text
    assert "policy" not in encode(build_table([LLAMA]))["routes.json"]


def test_a_cold_start_is_left_out_while_nobody_knows_it() -> None:
    assert (
        '"coldStart": 90' in encode(build_table([replace(LLAMA, cold_start_s=90)]))["routes.json"]
    )
    assert "coldStart" not in encode(build_table([LLAMA]))["routes.json"]
    assert decode(encode(build_table([LLAMA]))).routes[0].cold_start_s == 0


def test_a_ready_path_shows_only_where_it_is_not_nims_own() -> None:
    assert "readyPath" not in encode(build_table([LLAMA]))["routes.json"]
    text = encode(build_table([replace(LLAMA, ready_path="")]))["routes.json"]
    assert '"readyPath": ""' in text


def test_an_empty_table_is_a_table() -> None:
    assert decode(encode(build_table([]))).routes == ()


def test_the_namespaces_to_watch_come_from_the_routes() -> None:
    table = build_table([LLAMA, EMBED, replace(EMBED, namespace="other", names=())])
    assert table.namespaces == {"models", "other"}


def _sealed(text: str) -> dict[str, str]:
    """Data whose revision fits its text, so that only the text can be wrong."""
    revision = routes._digest(text)
    return {"version": "1", "revision": revision, "routes.json": text}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "version: expected '1', found None"),
        ({**encode(build_table([LLAMA])), "version": "2"}, "version: expected '1', found '2'"),
        ({"version": "1", "revision": "x"}, "routes.json: missing"),
        ({**encode(build_table([LLAMA])), "routes.json": "{}"}, "revision: does not match"),
        ({**encode(build_table([LLAMA])), "revision": "0"}, "revision: does not match"),
        (_sealed("{"), "routes.json: not JSON"),
        (_sealed("[" * 100_000), "routes.json: not JSON"),
        (_sealed("[]"), "routes.json: expected an object"),
        (_sealed('{"llama": {}}'), "'llama': expected 'namespace/name'"),
        (_sealed('{"a/b": 1}'), "'a/b': expected 'namespace/name' and an object"),
        (_sealed('{"a/b": {"names": []}}'), "a/b.created: expected Unix seconds"),
        (
            _sealed('{"a/b": {"names": "x", "created": 1, "model": "m"}}'),
            "a/b.names: expected a list of strings",
        ),
        *(
            (_sealed(f'{{"a/b": {{"created": 1, "model": "m", "service": "s", {more}}}}}'), text)
            for more, text in (
                ('"policy": []', "a/b.policy: expected an object"),
                ('"policy": {"x": 1}', "a/b.policy.x: unknown"),
                ('"policy": {"strategy": "Best"}', "a/b.policy.strategy: expected one of"),
                ('"policy": {"retries": -1}', "a/b.policy.retries: expected a whole number"),
                ('"policy": {"apis": "chat"}', "a/b.policy.apis: expected a list"),
                ('"adapters": [1]', "a/b.adapters: expected a list of strings"),
                ('"coldStart": "9"', "a/b.coldStart: expected whole seconds"),
                (
                    '"readyPath": "@evil.example/"',
                    "a/b.readyPath: expected a path from /, or nothing",
                ),
            )
        ),
        (_sealed('{"a/b": {"names": [], "created": 1}}'), "a/b.model: expected a non-empty"),
        (
            _sealed('{"a/b": {"names": [], "created": 1, "model": "m"}}'),
            "a/b.service: expected a non-empty string",
        ),
        (
            encode(build_table([LLAMA, replace(EMBED, names=("llama",))])),
            "'llama' is claimed by models/embed and models/llama",
        ),
    ],
)
def test_a_bad_table_is_refused_with_its_field(data: dict[str, str], message: str) -> None:
    with pytest.raises(RoutesError, match=message.replace("'", ".").replace("[", ".")):
        decode(data)
