"""Is the champion still right: drift of logs, ids and maps, the decision to retrain, the paired comparison; control charts."""
