"""The loop that trains any stage: steps, optimizers, schedules, averages, log, stops. It knows no model."""
