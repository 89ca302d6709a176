"""Builders of manifests: from a resolved object to what the API server shall hold.

Every builder is a pure function `build_x(...) -> manifest`. A manifest holds only fields that the
operator wants to own, no empty values, and quantities in canonical form.
"""
