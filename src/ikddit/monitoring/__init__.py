"""Is the champion still right: drift, the decision to retrain, the paired comparison; control charts over time."""
