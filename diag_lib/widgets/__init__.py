"""What would change if I moved this? Boards with controls in JupyterLab, still pictures everywhere else."""

from diag_lib.widgets.arms import ArmBoard, arm_board
from diag_lib.widgets.balance import BalanceBoard, balance_board
from diag_lib.widgets.board import Board
from diag_lib.widgets.curation import CurationBoard, curation_board
from diag_lib.widgets.heatmaps import HeatmapBrowser, heatmap_browser
from diag_lib.widgets.panel import SettingsPanel, settings_panel
from diag_lib.widgets.stop import StopButton, stop_button
from diag_lib.widgets.threshold import ThresholdBoard, threshold_board

__all__ = [
    "ArmBoard",
    "BalanceBoard",
    "Board",
    "CurationBoard",
    "HeatmapBrowser",
    "SettingsPanel",
    "StopButton",
    "ThresholdBoard",
    "arm_board",
    "balance_board",
    "curation_board",
    "heatmap_browser",
    "settings_panel",
    "stop_button",
    "threshold_board",
]
