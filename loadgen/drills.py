"""The table of drills: what load, what is done, what is asked.

Owns which drills there are. Loads are multiples of the capacity that a closed loop found on this
machine; seconds are of a quick drill, a full one takes STRETCH times as long. Must not know how a
drill is run or shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from loadgen import faults, model_faults, state_faults
from loadgen.attack_fault import novel_attack
from loadgen.card_numbers import card_number
from loadgen.certificate_faults import rotate
from loadgen.faults import Fault
from loadgen.state_faults import until_full
from loadgen.system import Plan

STRETCH: Final = 6.0
# Everything on one machine; or as one of several hosts, with Kafka and Redis.
Mode = Literal["embedded", "kafka"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_USUAL: Final = Plan()
ALWAYS: Final = ("something_answered", "nothing_lost")


class Phase(NamedTuple):
    """So many seconds (quick) at a load."""

    seconds: float
    load: float


@dataclass(frozen=True, slots=True)
class Drill:
    """A row. The fault begins ``fault_at`` s (quick) after the start, or after the load if None.

    It lasts ``hold_s`` (quick) where it can be chosen. ``check`` is what is asked of the system
    once the load has ended and all was read back. With ``retry``, the client repeats calls
    that got UNAVAILABLE or CANCELLED, as it is told to. ``modes`` are those that have what it is
    done to.
    """

    name: str
    what: str
    phases: tuple[Phase, ...]
    objectives: tuple[str, ...]
    ends: str
    fault: Fault | None = None
    fault_at: float | None = 2.0
    hold_s: float = 3.0
    check: Fault | None = None
    retry: bool = False
    plan: Plan = _USUAL
    modes: tuple[Mode, ...] = MODES

    @property
    def asked(self) -> tuple[str, ...]:
        """Every objective, those of all drills first."""
        return (*ALWAYS, *self.objectives)


HALF: Final = (Phase(10, 0.5),)
_RAMP: Final = tuple(Phase(2, load / 10) for load in range(2, 13, 2))
_UNHARMED: Final = ("no_failure", "in_time")
_PRESSED: Final = ("no_failure", "no_timeout", "in_time_overload")
_OVERLOADED: Final = ("sheds", "sheds_quickly", *_PRESSED)
_BACK: Final = ("no_failure_outside", "recovers")
# What has no part in an answer is away: nothing but the age of states may show it.
_UNFELT: Final = (*_UNHARMED, "fresh_without", "back_again")
_LEARNT: Final = (
    "attack_is_new", "models_change", "attack_caught", "caught_soon", "good_let_through",
)  # fmt: skip
_BROKERS: Final = ("kafka-1", "kafka-2", "kafka-3")
_HERE: Final[tuple[Mode, ...]] = ("embedded",)
_SHARED: Final[tuple[Mode, ...]] = ("kafka",)

DRILLS: Final[dict[str, Drill]] = {
    drill.name: drill
    for drill in (
        Drill("steady", "half the capacity, nothing else", HALF, (*_UNHARMED, "fresh"),
              "after its time"),
        Drill("ramp", "load in steps up to beyond the knee", _RAMP, ("knee",),
              "after the last step"),
        Drill("burst", "three times the usual load for a moment",
              (Phase(3, 0.5), Phase(2, 1.5), Phase(5, 0.5)), _PRESSED,
              "after a while at the usual load"),
        Drill("herd", "the scorer hangs; then all that was missed comes at once",
              (Phase(2, 0.5), Phase(2, 0.05), Phase(1, 3.0), Phase(6, 0.5)), _BACK,
              "after a while at the usual load", faults.pause("serve-0"), 2.0, 2.0),
        Drill("overload-2x", "twice the capacity", (Phase(8, 2.0),),
              _OVERLOADED, "after its time"),
        Drill("overload-5x", "five times the capacity", (Phase(6, 5.0),),
              _OVERLOADED, "after its time"),
        Drill("slow-clients", "64 connections that are half open, or never read", HALF, _UNHARMED,
              "when they are closed", faults.slow_clients, 2.0, 5.0),
        Drill("scorer-kill", "kill -9 of the scorer", (Phase(20, 0.5),), (*_BACK, "back_again"),
              "when up has started another", faults.kill("serve-0")),
        Drill("featurizer-kill", "kill -9 of the featurizer", HALF,
              _UNFELT, "when up has started another", faults.kill("featurizer"), modes=_HERE),
        Drill("trainer-kill", "kill -9 of the trainer", HALF, (*_UNHARMED, "fresh", "back_again"),
              "when up has started another", faults.kill("trainer"), plan=Plan(trainer=True),
              modes=_HERE),
        Drill("zombie", "the featurizer hangs, and goes on later", HALF,
              (*_UNHARMED, "fresh_without"), "when it goes on", faults.pause("featurizer"),
              modes=_HERE),
        Drill("disk-full", "the log's disk is full to the last byte", HALF, ("refuses", *_BACK),
              "when there is room again", faults.fill_disk, plan=Plan(log_disk_mib=192)),
        Drill("poison", "calls that must be refused, among good ones", HALF,
              (*_UNHARMED, "says_why"), "after its time", faults.poison, 2.0, 5.0),
        Drill("bad-bundle", "damaged, unsigned and foreign bundles are put in place", HALF,
              (*_UNHARMED, "same_model"), "when the old link is back", model_faults.bad_bundles,
              1.0, 6.0),
        Drill("foreign-bundle", "a signed bundle of another feature schema is put in place",
              HALF, (*_UNHARMED, "same_model", "says_cause"), "when the old link is back",
              model_faults.foreign_bundle, 1.0),
        Drill("foreign-store", "the featurizer starts on a store of another feature schema", HALF,
              (*_UNHARMED, "says_cause", "whole_again", "as_logged"),
              "when all answers are full again", until_full(state_faults.foreign_store),
              check=state_faults.compare_with_log, modes=_HERE),
        Drill("model-swaps", "six models are linked in turn, 34 times (204 without --quick)", HALF,
              (*_UNHARMED, "models_change", "every_swap"), "when the first is back",
              model_faults.swap_models, 1.0, 34.0),
        Drill("certificates", "certificate and key are replaced, then who signs callers", HALF,
              (*_UNHARMED, "newest_certificate", "new_connections", "no_strangers"),
              "when the old authority is back", rotate, 1.0, 6.0, plan=Plan(tls=True)),
        Drill("clock-step", "the roles' time of day jumps half a day ahead, then back behind", HALF,
              (*_UNHARMED, "clock_seen", "whole_again", "as_logged"),
              "when it is right again and all answers are full",
              until_full(faults.step_clock), 2.0, 6.0, check=state_faults.compare_with_log,
              plan=Plan(clock=True)),
        Drill("novel-attack", "what got through of an attack that nobody taught is reported",
              (Phase(12, 0.2),), (*_UNHARMED, *_LEARNT),
              "when most of it is alerted, or after two minutes", novel_attack, 6.0,
              plan=Plan(trainer=True, lifelike=True), modes=_HERE),
        Drill("rolling-restart", "two scorers on one port are restarted in turn", (Phase(24, 0.4),),
              ("no_failure", "in_time"), "when both are back", faults.rolling_restart, retry=True,
              plan=Plan(workers=2)),
        Drill("label-flood", "labels of unknown payments, as fast as they are taken", HALF,
              (*_UNHARMED, "labels_taken"), "after its time", faults.label_flood, 2.0, 5.0),
        Drill("soak", "half the capacity for long; memory and descriptors are watched",
              (Phase(15, 0.5),), (*_UNHARMED, "memory_flat", "descriptors_flat"),
              "after its time", faults.watch, 0.0, 14.0),
        Drill("rebuild", "the store is deleted and made again from the log", (Phase(4, 0.5),),
              ("no_failure", "same_answers"), "when the probes are answered alike",
              state_faults.rebuild, None),
        Drill("redis-kill", "kill -9 of Redis, which comes back empty", HALF,
              (*_UNHARMED, "says_so", "whole_again"), "when all answers are full again",
              until_full(faults.kill("redis")), modes=_SHARED),
        Drill("redis-hang", "Redis takes connections and answers nothing", HALF,
              (*_UNHARMED, "says_so", "whole_again"), "when all answers are full again",
              until_full(faults.pause("redis")), modes=_SHARED),
        Drill("redis-slow", "Redis runs a fifth of the time", HALF,
              (*_UNHARMED, "says_so", "whole_again"), "when all answers are full again",
              until_full(state_faults.slow("redis")), modes=_SHARED),
        Drill("redis-flush", "Redis forgets all", HALF, (*_UNHARMED, "says_so", "whole_again"),
              "when all answers are full again", until_full(state_faults.flush),
              modes=_SHARED),
        Drill("kafka-slow", "brokers run a fifth of the time", HALF, (*_UNHARMED, "whole_again"),
              "when all answers are full again", until_full(state_faults.slow(*_BROKERS)),
              modes=_SHARED),
        Drill("kafka-leader", "kill -9 of one of three brokers: others lead", HALF,
              (*_UNHARMED, "whole_again"), "when all answers are full again",
              until_full(faults.kill("kafka-1")), modes=_SHARED),
        Drill("kafka-kill", "kill -9 of every broker", HALF, (*_UNHARMED, "whole_again"),
              "when all answers are full again", until_full(faults.kill(*_BROKERS)),
              modes=_SHARED),
        Drill("relay-kill", "kill -9 of the relay", HALF, _UNFELT, "when up has started another",
              faults.kill("relay"), modes=_SHARED),
        Drill("split-kill", "kill -9 of a split", HALF, _UNFELT, "when up has started another",
              faults.kill("split-0"), modes=_SHARED),
        Drill("fold-kill", "kill -9 of a fold", HALF, _UNFELT, "when up has started another",
              faults.kill("fold-0"), modes=_SHARED),
        Drill("rebalance", "a split and a fold hang until others have their partitions", HALF,
              (*_UNHARMED, "whole_again"), "when all answers are full again",
              until_full(faults.pause("split-0", "fold-0")), 2.0, 10.0, modes=_SHARED),
        Drill("states", "states are made again from Kafka, beside those in use", (Phase(4, 0.5),),
              ("no_failure", "same_states"), "when each byte was compared",
              state_faults.compare_states, None, modes=_SHARED),
        Drill("card-number", "a card number in every field of every call; then a search for it",
              (Phase(4, 0.5),), ("no_failure", "says_why", "found_nowhere", "search_finds"),
              "when every file was searched", card_number, None),
    )
}  # fmt: skip
