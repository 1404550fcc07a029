variable "bucket" {
  description = "Name of the bucket for recordings, workspaces and MLflow's artifacts."
  type        = string
}

variable "region" {
  description = "Region of the bucket and of the nodes: traffic between regions costs more than the nodes."
  type        = string
  default     = "eu-central-1"
}

variable "archive_prefix" {
  description = "Prefix of the recordings, which the nodes only read."
  type        = string
  default     = "archive/"
}

variable "workspace_prefix" {
  description = "Prefix below which the nodes may write workspaces."
  type        = string
  default     = "workspace"
}

variable "public_archives" {
  description = "Public buckets with recordings that the nodes may read, for example scedc-pds."
  type        = list(string)
  default     = []
}

variable "cluster_name" {
  description = "`cluster_name` of cluster.yaml; the head may end only that cluster's machines."
  type        = string
  default     = "firnline"
}

variable "worker_instance_types" {
  description = "Instance types that the head may start; those of cluster.yaml."
  type        = list(string)
  default     = ["c7i.4xlarge", "g6.xlarge"]
}

variable "eks_oidc_provider" {
  description = "OIDC provider of an EKS cluster without https://, for KubeRay; empty without one."
  type        = string
  default     = ""
}

variable "namespace" {
  description = "Kubernetes namespace of the service accounts."
  type        = string
  default     = "firnline"
}

variable "vpc" {
  description = "VPC of Ray's machines and of MLflow; empty: the region's default VPC, which `ray up` uses, too."
  type        = string
  default     = ""
}

variable "ssh_from" {
  description = "Address ranges that may open SSH to Ray's machines, for example [\"203.0.113.7/32\"]; `ray up` needs yours."
  type        = list(string)
}

variable "mlflow" {
  description = "Make a machine that runs an MLflow server; false where you have a server, or run it on Kubernetes."
  type        = bool
  default     = true
}

variable "mlflow_subnet" {
  description = "Subnet of the MLflow machine; empty: the first one of the VPC."
  type        = string
  default     = ""
}

variable "mlflow_public_address" {
  description = "Give the MLflow machine a public address, by which it installs its packages; false in a subnet with NAT."
  type        = bool
  default     = true
}

variable "mlflow_version" {
  description = "Version of the MLflow server; that of requirements.lock."
  type        = string
  default     = "3.17.2"
}
