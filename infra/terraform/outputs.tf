output "bucket" {
  value = aws_s3_bucket.firnline.id
}

output "nodes_role" {
  description = "For the service account in infra/kuberay/access.yaml."
  value       = aws_iam_role.nodes.arn
}

output "mlflow_role" {
  description = "For the service account in infra/mlflow/mlflow.yaml."
  value       = aws_iam_role.mlflow.arn
}

output "mlflow_instance" {
  value = one(aws_instance.mlflow[*].id)
}

output "mlflow_uri" {
  description = "For --mlflow, from Ray's nodes."
  value       = one([for machine in aws_instance.mlflow : "http://${machine.private_ip}:5000"])
}
