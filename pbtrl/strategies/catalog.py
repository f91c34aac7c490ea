"""Settings of all strategies by their names in a config; `adopt` of config/open_names.py adds those of users."""

from pbtrl.strategies.pbt_settings import PBTSettings, RandomSearchSettings
from pbtrl.strategies.rl_search_settings import RLSearchSettings
from pbtrl.strategies.settings import StrategySettings

STRATEGIES: dict[str, type[StrategySettings]] = {
    "pbt": PBTSettings,
    "random_search": RandomSearchSettings,
    "rl_search": RLSearchSettings,
}
