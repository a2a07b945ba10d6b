"""Pictures of the dashboards, drawn from the same JSON and the same queries, where no Grafana runs."""
