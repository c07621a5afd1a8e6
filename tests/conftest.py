"""What every test shares."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Building a network takes as long as it takes on a slow machine; that is not what these tests are about.
settings.register_profile("unetkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unetkit")
