"""Settings of all strategies by their names in a config; `adopt` of config/open_names.py adds those of users."""

from pbtrl.strategies.fire_settings import FireSettings
from pbtrl.strategies.pbt_settings import PBTSettings
from pbtrl.strategies.pbt_variants_settings import MFPBTSettings, PB2Settings
from pbtrl.strategies.replay_settings import ScheduleReplaySettings
from pbtrl.strategies.rl_search_settings import RLSearchSettings
from pbtrl.strategies.settings import StrategySettings
from pbtrl.strategies.trial_settings import (
    ASHASettings,
    BayesianSettings,
    FixedSettings,
    GridSettings,
    HyperbandSettings,
    RandomSearchSettings,
    SuccessiveHalvingSettings,
)

STRATEGIES: dict[str, type[StrategySettings]] = {
    "pbt": PBTSettings,
    "random_search": RandomSearchSettings,
    "fire": FireSettings,
    "schedule_replay": ScheduleReplaySettings,
    "grid": GridSettings,
    "fixed": FixedSettings,
    "successive_halving": SuccessiveHalvingSettings,
    "hyperband": HyperbandSettings,
    "asha": ASHASettings,
    "bayesian": BayesianSettings,
    "pb2": PB2Settings,
    "mf_pbt": MFPBTSettings,
    "rl_search": RLSearchSettings,
}
