"""Settings of the whole test suite."""

from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: time says nothing about what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
