"""The ground floor: records, run context, registry, checks and errors. Imports nothing from the floors above."""
