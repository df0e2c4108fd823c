"""A job file as each of its targets is asked."""

from pipeline.sections import Endpoint, JobFile, TargetSection

_OF_ONE_PROTOCOL = {"base_url", "key_env", "key", "api_version", "project", "location"}
_OF_ONE_PROXY = {"proxy", "proxy_env"}
_PLACES_OF_KEY = frozenset({"key", "key_env"})


def asked_at(spec: JobFile, target: TargetSection) -> JobFile:
    """The job file with what the target says in the place of what all say."""
    said = target.model_fields_set
    endpoint = {name: getattr(spec.endpoint, name) for name in spec.endpoint.model_fields_set}
    if "provider" in said and target.provider != spec.endpoint.provider:  # address and key are another protocol's
        endpoint = {name: value for name, value in endpoint.items() if name not in _OF_ONE_PROTOCOL}
    if said & _OF_ONE_PROXY:
        endpoint = {name: value for name, value in endpoint.items() if name not in _OF_ONE_PROXY}
    if said & _PLACES_OF_KEY:  # its own place, and not the other's as well
        endpoint = {name: value for name, value in endpoint.items() if name not in _PLACES_OF_KEY}
    endpoint |= {name: getattr(target, name) for name in said & Endpoint.model_fields.keys()}
    limits = {name: getattr(target.limits, name) for name in target.limits.model_fields_set}
    model = {"name": target.model, "prices": target.prices if "prices" in said else None} if target.model else {}
    if target.lane is not None:
        model["lane"] = target.lane
    if "prices" in said:
        model["prices"] = target.prices
    return spec.model_copy(
        update={
            "endpoint": Endpoint.model_validate(endpoint),
            "limits": spec.limits.model_copy(update=limits),
            "model": spec.model.model_copy(update=model),
            "target": [],
        }
    )
