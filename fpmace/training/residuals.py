"""``fpmace.metrics.residuals`` under the name that plugins know it by."""

from fpmace.metrics.residuals import *  # noqa: F403
