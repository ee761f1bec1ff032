"""Medusa: trained heads on the final state."""

from specbench_methods.medusa.method import METHOD, Medusa, MedusaOptions

__all__ = ["METHOD", "Medusa", "MedusaOptions"]
