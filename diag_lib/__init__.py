"""Why does a distilled image detector not learn? Measure, experiment, and name the cause."""

__version__ = "0.1.0"
