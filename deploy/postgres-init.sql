-- Run once, when the PostgreSQL volume is empty: beside `mlflow`, one database for MLflow's users and one for Prefect.
CREATE DATABASE mlflow_auth;
CREATE DATABASE prefect;
