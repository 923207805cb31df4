"""MLflow: the tracking store, the pyfunc package, versions and aliases."""
