"""Every metric in one table, and the one function that observes a finished call.

Counts are plain integers that a scrape turns into Prometheus' text format: a call pays for a few additions, and for no
lock, label look-up or formatting.
"""

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.mcp.messages import McpCall
from gateway.callids import since
from gateway.exchange import Exchange
from gateway.steering import Steering, evidence, shares
from policies.budgets import Balance
from policies.money import NANO
from policies.reuse import Reuse
from routing.health import Fleet, State

if TYPE_CHECKING:
    from gateway.lending import Lender
    from gateway.mirroring import Mirrors
    from gateway.notices import Courier
    from gateway.standings import Standings
    from gateway.traffic import Traffic

_FAST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_MCP = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""As OpenTelemetry's semantic conventions for MCP have them."""
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

EARLIER = "earlier"
OTHER = "_OTHER"
"""In place of names that anybody can make up."""
_MOST_TOOLS = 256
_METHODS = frozenset(
    {
        "DELETE",
        "GET",
        "completion/complete",
        "elicitation/create",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "sampling/createMessage",
        "server/discover",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/get",
        "tasks/update",
        "tools/call",
        "tools/list",
    }
)
"""Methods of MCP that are counted by their names."""
SHORT = 12
"""Digits of a revision that tell it from others at a glance."""
_MOST_REVISIONS = 8


class Histogram:
    """Observations sorted into buckets with fixed upper bounds, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        running, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Telemetry(Collector):
    """The gateway's metrics. One process, one event loop: nothing here is locked."""

    def __init__(self) -> None:
        self.calls: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.overhead: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_FAST))
        self.target: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_SLOW))
        self.first_byte: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_SLOW))
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.operations: defaultdict[tuple[str, str, str, str], Histogram] = defaultdict(lambda: Histogram(_MCP))
        """Of MCP, by server, method, tool and what went wrong."""
        self.sessions: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_MCP))
        """Of MCP, by server: those that their clients have ended."""
        self._tools: set[tuple[str, str]] = set()
        """Servers and tools that have labels of their own: every label is for ever."""
        self.cost: defaultdict[str, int] = defaultdict(int)
        """Nano-dollars, by target."""
        self.unpriced: defaultdict[str, int] = defaultdict(int)
        """Calls whose price is not known, by target."""
        self.lender: Lender | None = None
        self.traffic: Traffic | None = None
        self.fleet: Fleet | None = None
        self.mirrors: Mirrors | None = None
        self.balances: Sequence[Balance] = ()
        """How the budgets for days and months stand."""
        self.steering: Steering | None = None
        self.standings: Standings | None = None
        self.webhooks: Mapping[str, int] = {}
        """Messages to webhooks, by what became of them."""
        self.courier: Courier | None = None
        self.reloads: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.decisions: dict[str, defaultdict[str, int]] = {}
        """By revision, then by the policy's word; `none` where there was no answer."""
        self.uploaded: Mapping[str, int] = {}
        """Decision log events, by what became of them on their way to a collector."""
        self.in_flight = 0
        self.revision = ""
        self.reuse: Reuse | None = None
        """Of the engine that decides, where it is embedded; its counts begin anew with every revision."""
        self.compared: Mapping[tuple[str, str], int] = {}
        """Calls put before the policy on trial, too: by the configured policy's word and its own."""
        self.ledger_failing = False
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observe(self, x: Exchange) -> None:
        """Counts one call that is over."""
        protocol = x.adapter.protocol
        for asked in x.asked:
            words = self.decisions.get(asked.revision)
            if words is None:
                words = self._new_revision(asked.revision)
            words[asked.decision.effect if asked.decision is not None else "none"] += 1
        self.calls[protocol, x.decision.effect if x.decision is not None else "none", x.code] += 1
        if isinstance(x.call, McpCall):
            self._operation(x, x.call)
        if x.arm is None or (x.sent_at is None and not x.bills):
            return
        name = x.arm.target.name
        if x.sent_at is not None:
            # What a failed attempt has taken is its target's time.
            first = x.sent_at if len(x.attempts) < 2 else x.attempts[0].began
            self.overhead[protocol].observe(first - x.read_at)
            self.target[name].observe(x.ended - x.sent_at)
            if x.first_byte_at is not None:
                self.first_byte[name].observe(x.first_byte_at - x.sent_at)
        if x.cost is not None:
            self.unpriced[name] += x.unpriced
        used = [(name, x.cost or 0, x.usage)]
        if len(x.attempts) > 1:
            used = [(each.arm.target.name, each.cost, each.usage) for each in x.attempts]
        for target, cost, usage in used:
            self.cost[target] += cost
            if usage is not None:
                self.tokens[target, "input"] += usage.input_tokens
                self.tokens[target, "output"] += usage.output_tokens

    def _operation(self, x: Exchange, call: McpCall) -> None:
        method = call.method if call.method in _METHODS else OTHER
        tool = ""
        if method == "tools/call":
            place = (call.target, call.operation)
            if place not in self._tools and x.code == "ok" and len(self._tools) < _MOST_TOOLS:
                self._tools.add(place)
            tool = call.operation if place in self._tools else OTHER
        error = x.code if x.code != "ok" else "tool_error" if x.tool_error else ""
        self.operations[call.target, method, tool, error].observe(x.ended - x.began)
        began = since(call.session) if method == "DELETE" and x.status < 300 else None
        if began is not None:
            self.sessions[call.target].observe((x.arrived_ns - began) / 1e9)

    def _new_revision(self, revision: str) -> defaultdict[str, int]:
        """A place for its counts. Beyond the last few, revisions share one: every label is for ever."""
        if len(self.decisions) > _MOST_REVISIONS:
            oldest = next(name for name in self.decisions if name != EARLIER)
            earlier = self.decisions.setdefault(EARLIER, defaultdict(int))
            for word, count in self.decisions.pop(oldest).items():
                earlier[word] += count
        words = self.decisions[revision] = defaultdict(int)
        return words

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "weighbridge_calls", "Calls that are over, refused ones included.", labels=("protocol", "decision", "code")
        )
        for labels, count in self.calls.items():
            calls.add_metric(labels, count)
        yield calls
        decisions = CounterMetricFamily(
            "weighbridge_decisions",
            "Answers of the policy; a call that it wants changed or approved is decided again.",
            labels=("decision", "revision"),
        )
        for revision, answers in self.decisions.items():
            for word, count in answers.items():
                decisions.add_metric((word, revision[:SHORT]), count)
        yield decisions
        uploaded = CounterMetricFamily(
            "weighbridge_decision_log",
            "Decision log events on their way to the collector: delivered, given up, or tried in vain and tried again.",
            labels=("result",),
        )
        for became, count in self.uploaded.items():
            uploaded.add_metric((became,), count)
        yield uploaded
        yield _histograms(
            "weighbridge_overhead_seconds",
            "From the call read to its request sent: the gateway's own time before a target works.",
            "protocol",
            self.overhead,
        )
        yield _histograms(
            "weighbridge_target_seconds", "From the request sent to the end of the call.", "target", self.target
        )
        yield _histograms(
            "weighbridge_first_byte_seconds",
            "From the request sent to the first byte of the answer's body: the first token of a stream.",
            "target",
            self.first_byte,
        )
        tokens = CounterMetricFamily(
            "weighbridge_tokens", "Tokens that targets reported.", labels=("target", "direction")
        )
        for direction, count in self.tokens.items():
            tokens.add_metric(direction, count)
        yield tokens
        yield from self._mcp()
        yield from self._traffic()
        yield from self._money()
        yield from self._routes()
        yield from self._messages()
        reloads = CounterMetricFamily(
            "weighbridge_reloads", "Reloads of the configuration and of the policy.", labels=("what", "result")
        )
        for result, count in self.reloads.items():
            reloads.add_metric(result, count)
        yield reloads
        agents = GaugeMetricFamily("weighbridge_agents", "Configured agents, by how they stand.", labels=("state",))
        for standing, count in self.standings.counts().items() if self.standings is not None else ():
            agents.add_metric((standing,), count)
        yield agents
        yield GaugeMetricFamily("weighbridge_in_flight", "Calls under way.", value=self.in_flight)
        yield GaugeMetricFamily(
            "weighbridge_ledger_failing", "1 while the ledger cannot be written.", value=int(self.ledger_failing)
        )
        sources = CounterMetricFamily(
            "weighbridge_policy_decisions",
            "Decisions of the revision that decides: evaluated, or used again from an equal call.",
            labels=("source",),
        )
        if self.reuse is not None:
            sources.add_metric(("reused",), self.reuse.hits)
            sources.add_metric(("evaluated",), self.reuse.misses + self.reuse.unsuited)
        yield sources
        policy = GaugeMetricFamily("weighbridge_policy", "1 for the revision that decides.", labels=("revision",))
        if self.revision:
            policy.add_metric((self.revision,), 1)
        yield policy
        compared = CounterMetricFamily(
            "weighbridge_policy_compared",
            "Calls decided by the configured policy and by the one on trial, by the word of each.",
            labels=("configured", "on_trial"),
        )
        for words, count in self.compared.items():
            compared.add_metric(words, count)
        yield compared

    def _mcp(self) -> Iterator[Metric]:
        operations = HistogramMetricFamily(
            "mcp_server_operation_duration_seconds",
            "MCP messages, from their arrival to the end of their answers.",
            labels=("server", "mcp_method_name", "gen_ai_tool_name", "error_type"),
        )
        for labels, histogram in self.operations.items():
            operations.add_metric(labels, histogram.cumulative(), histogram.total)
        yield operations
        yield _histograms(
            "mcp_server_session_duration_seconds", "MCP sessions that clients have ended.", "server", self.sessions
        )

    def _traffic(self) -> Iterator[Metric]:
        attempts = CounterMetricFamily(
            "weighbridge_attempts",
            "Tries of calls at the targets of their routes, by how they ended.",
            labels=("route", "target", "outcome"),
        )
        overflow = CounterMetricFamily(
            "weighbridge_overflow",
            "Calls meant for a target that another one took: it was full or out of service.",
            labels=("route", "target"),
        )
        retries = CounterMetricFamily(
            "weighbridge_retries", "Attempts made again because one before had failed.", labels=("route",)
        )
        if self.traffic is not None:
            for met in self.traffic.met():
                for outcome, count in met.attempts.items():
                    attempts.add_metric((met.route, met.target, outcome), count)
                overflow.add_metric((met.route, met.target), met.overflow)
            for route, count in self.traffic.retries():
                retries.add_metric((route,), count)
        nodes = GaugeMetricFamily(
            "weighbridge_nodes", "Nodes of a target, by whether they take calls.", labels=("target", "state")
        )
        busy = GaugeMetricFamily("weighbridge_target_in_flight", "Calls under way at a target.", labels=("target",))
        for name, pool in self.fleet.pools.items() if self.fleet is not None else ():
            for state in State:
                nodes.add_metric((name, state.value), sum(node.state is state for node in pool.nodes))
            busy.add_metric((name,), pool.in_flight)
        mirrored = CounterMetricFamily(
            "weighbridge_mirrored",
            "Calls chosen to be copied to a second target: compared, dropped, or unfit for its protocol.",
            labels=("route", "target", "result"),
        )
        copied: Counter[tuple[str, str, str]] = Counter()  # a mirror may have had several models, one after the other
        for route, compared in self.mirrors.all() if self.mirrors is not None else ():
            target = compared.settings.target
            copied[route, target, "compared"] += sum(compared.pairs.values())
            copied[route, target, "dropped"] += compared.dropped
            copied[route, target, "unfit"] += compared.unfit
        for place, count in copied.items():
            mirrored.add_metric(place, count)
        yield from (attempts, overflow, retries, nodes, busy, mirrored)

    def _money(self) -> Iterator[Metric]:
        cost = CounterMetricFamily("weighbridge_cost_usd", "US dollars that calls have cost.", labels=("target",))
        for target, amount in self.cost.items():
            cost.add_metric((target,), amount / NANO)
        yield cost
        unpriced = CounterMetricFamily(
            "weighbridge_unpriced_calls", "Calls whose price is not known: they are in no cost.", labels=("target",)
        )
        for target, count in self.unpriced.items():
            unpriced.add_metric((target,), count)
        yield unpriced
        used = GaugeMetricFamily(
            "weighbridge_budget_used_ratio",
            "Spent and lent, as a share of the limit, in the window that is under way.",
            labels=("node", "window", "mode"),
        )
        for balance in self.balances:
            budget = balance.account.budget
            share = (balance.posted + balance.pending) / balance.limit if balance.limit else 1.0
            used.add_metric((budget.node, budget.window, budget.mode), share)
        yield used
        lender = self.lender
        if lender is None:
            return
        shadow = CounterMetricFamily(
            "weighbridge_budget_shadow_refusals",
            "Calls that a shadow budget would have refused.",
            labels=("node", "window"),
        )
        for place, count in lender.shadow_refusals.items():
            shadow.add_metric(place, count)
        yield shadow
        for name, text, value in (
            ("weighbridge_budget_cut_streams", "Answers ended because no budget paid for more.", lender.cut_streams),
            ("weighbridge_budget_overruns", "Calls that cost more than they were lent.", lender.overruns),
            ("weighbridge_unlimited_calls", "Calls let in without their limits being counted.", lender.unlimited),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily(
            "weighbridge_state_failing",
            "1 while the state of budgets and limits cannot be kept.",
            value=int(lender.store.failure is not None),
        )

    def _routes(self) -> Iterator[Metric]:
        steering = self.steering
        if steering is None:
            return
        weights = GaugeMetricFamily(
            "weighbridge_route_weight", "Share of new sessions, in per cent.", labels=("route", "target")
        )
        for route in steering.routes:
            for target, share in shares(route):
                weights.add_metric((route.name, target), share)
        yield weights
        state = GaugeMetricFamily("weighbridge_rollout", "1 for the state of a rollout.", labels=("route", "state"))
        step = GaugeMetricFamily("weighbridge_rollout_step", "Step of a rollout, from 1.", labels=("route",))
        against = GaugeMetricFamily(
            "weighbridge_rollout_evidence_ratio",
            "Evidence that a canary is above its limit, as a share of the evidence that is enough.",
            labels=("route",),
        )
        for name, rollout, _ in steering.rollouts:
            state.add_metric((name, rollout.state.value), 1)
            step.add_metric((name,), rollout.step)
            found = evidence(rollout)
            if found is not None:
                against.add_metric((name,), found)
        yield from (state, step, against)
        moves = CounterMetricFamily(
            "weighbridge_rollout_moves", "Moves of rollouts that this gateway made.", labels=("route", "move")
        )
        for move, count in steering.moves.items():
            moves.add_metric(move, count)
        yield moves
        webhooks = CounterMetricFamily(
            "weighbridge_webhooks",
            "Messages to webhooks: sent, given up, or tried in vain and tried again.",
            labels=("result",),
        )
        for became, count in self.webhooks.items():
            webhooks.add_metric((became,), count)
        yield webhooks

    def _messages(self) -> Iterator[Metric]:
        courier = self.courier
        if courier is None:
            return
        messages = CounterMetricFamily(
            "weighbridge_approval_messages", "Messages about held calls, by what became of them.", labels=("result",)
        )
        for became, count in courier.counts.items():
            messages.add_metric((became,), count)
        waiting = GaugeMetricFamily(
            "weighbridge_approval_messages_waiting",
            "Messages about held calls that this gateway sends now, or tries again later.",
            labels=("state",),
        )
        for state, count in courier.waiting.items():
            waiting.add_metric((state,), count)
        yield from (messages, waiting)


def _histograms(name: str, text: str, label: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, histogram in histograms.items():
        family.add_metric((value,), histogram.cumulative(), histogram.total)
    return family
