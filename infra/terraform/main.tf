# The bucket, the three roles that use it, each with the rights it needs and no more, the network rules of Ray's machines,
# and an MLflow server (unless `mlflow` is false). From the root of the repository:
#
#   terraform -chdir=infra/terraform init
#   terraform -chdir=infra/terraform apply -var bucket=MY-BUCKET -var 'ssh_from=["MY.ADDRESS/32"]'
#
# No access key is created: nodes and pods assume a role.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "firnline" }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  arn     = "arn:${data.aws_partition.current.partition}"
  oidc    = var.eks_oidc_provider == "" ? [] : [var.eks_oidc_provider]
}

# The bucket.

resource "aws_s3_bucket" "firnline" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "firnline" {
  bucket                  = aws_s3_bucket.firnline.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "firnline" {
  bucket = aws_s3_bucket.firnline.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "firnline" {
  bucket = aws_s3_bucket.firnline.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# A killed worker leaves incomplete uploads, which cost storage and appear in no listing.
resource "aws_s3_bucket_lifecycle_configuration" "firnline" {
  bucket = aws_s3_bucket.firnline.id
  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }
}

data "aws_iam_policy_document" "bucket_tls" {
  statement {
    sid       = "OnlyEncryptedConnections"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.firnline.arn, "${aws_s3_bucket.firnline.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "firnline" {
  bucket     = aws_s3_bucket.firnline.id
  policy     = data.aws_iam_policy_document.bucket_tls.json
  depends_on = [aws_s3_bucket_public_access_block.firnline]
}

# The network of Ray's machines: they reach each other on every port, `ssh_from` reaches SSH, and nobody reaches more.
# cluster.yaml names the group, and `ray up` leaves the rules of a group that it finds as they are.

data "aws_vpc" "ray" {
  default = var.vpc == "" ? true : null
  id      = var.vpc == "" ? null : var.vpc
}

resource "aws_security_group" "ray" {
  name        = "firnline-ray"
  description = "Ray machines of Firnline"
  vpc_id      = data.aws_vpc.ray.id
}

resource "aws_vpc_security_group_ingress_rule" "ray" {
  security_group_id            = aws_security_group.ray.id
  referenced_security_group_id = aws_security_group.ray.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each          = toset(var.ssh_from)
  security_group_id = aws_security_group.ray.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_egress_rule" "ray" {
  security_group_id = aws_security_group.ray.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

# What each role may do.

# Recordings are read and never written; workspaces are read, written and replaced.
data "aws_iam_policy_document" "data" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.firnline.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["", "${var.archive_prefix}*", "${var.workspace_prefix}*"]
    }
  }
  statement {
    sid       = "Where"
    actions   = ["s3:GetBucketLocation"]
    resources = [aws_s3_bucket.firnline.arn]
  }
  statement {
    sid       = "ReadRecordings"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.firnline.arn}/${var.archive_prefix}*"]
  }
  statement {
    sid = "Workspaces"
    actions = [
      "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    ]
    resources = ["${aws_s3_bucket.firnline.arn}/${var.workspace_prefix}*"]
  }
  # Public data sets with recordings (SCEDC, NCEDC, EarthScope).
  dynamic "statement" {
    for_each = length(var.public_archives) > 0 ? [1] : []
    content {
      sid       = "PublicRecordings"
      actions   = ["s3:GetObject", "s3:ListBucket"]
      resources = flatten([for name in var.public_archives : ["${local.arn}:s3:::${name}", "${local.arn}:s3:::${name}/*"]])
    }
  }
}

resource "aws_iam_policy" "data" {
  name   = "firnline-data"
  policy = data.aws_iam_policy_document.data.json
}

# `firnline fetch` writes recordings; attach this policy only to whoever runs it.
data "aws_iam_policy_document" "fetch" {
  statement {
    sid       = "WriteRecordings"
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${aws_s3_bucket.firnline.arn}/${var.archive_prefix}*"]
  }
}

resource "aws_iam_policy" "fetch" {
  name   = "firnline-fetch"
  policy = data.aws_iam_policy_document.fetch.json
}

# The head of cluster.yaml starts and ends workers: only of these types, only with the nodes' role, only of its own cluster.
data "aws_iam_policy_document" "scaling" {
  statement {
    sid = "Look"
    actions = [
      "ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeImages",
      "ec2:DescribeKeyPairs", "ec2:DescribeSubnets", "ec2:DescribeVpcs", "ec2:DescribeSecurityGroups",
      "ec2:DescribeAvailabilityZones",
    ]
    resources = ["*"]
  }
  statement {
    sid       = "StartWorkers"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:instance/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:InstanceType"
      values   = var.worker_instance_types
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/ray-cluster-name"
      values   = [var.cluster_name]
    }
  }
  statement {
    sid     = "StartWorkersWith"
    actions = ["ec2:RunInstances"]
    resources = [
      "${local.arn}:ec2:${var.region}::image/*",
      "${local.arn}:ec2:${var.region}:${local.account}:key-pair/*",
      "${local.arn}:ec2:${var.region}:${local.account}:network-interface/*",
      "${local.arn}:ec2:${var.region}:${local.account}:security-group/*",
      "${local.arn}:ec2:${var.region}:${local.account}:spot-instances-request/*",
      "${local.arn}:ec2:${var.region}:${local.account}:subnet/*",
      "${local.arn}:ec2:${var.region}:${local.account}:volume/*",
    ]
  }
  # cluster.yaml names its image by this public parameter, which is looked up with the head's rights.
  statement {
    sid       = "FindImage"
    actions   = ["ssm:GetParameters"]
    resources = ["${local.arn}:ssm:${var.region}::parameter/aws/service/deeplearning/*"]
  }
  # The first spot machine of an account needs this role of EC2's own, and EC2 makes it for whoever may.
  statement {
    sid       = "FirstSpotMachine"
    actions   = ["iam:CreateServiceLinkedRole"]
    resources = ["${local.arn}:iam::${local.account}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"]
    condition {
      test     = "StringEquals"
      variable = "iam:AWSServiceName"
      values   = ["spot.amazonaws.com"]
    }
  }
  statement {
    sid       = "TagNewWorkers"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:*/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }
  statement {
    sid       = "ItsOwn"
    actions   = ["ec2:TerminateInstances", "ec2:CreateTags"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:instance/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/ray-cluster-name"
      values   = [var.cluster_name]
    }
  }
  statement {
    sid       = "GiveWorkersTheirRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.nodes.arn]
    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }
  statement {
    sid       = "SeeProfile"
    actions   = ["iam:GetInstanceProfile"]
    resources = [aws_iam_instance_profile.nodes.arn]
  }
}

resource "aws_iam_policy" "scaling" {
  name   = "firnline-scaling"
  policy = data.aws_iam_policy_document.scaling.json
}

# Who may assume a role.

data "aws_iam_policy_document" "assume_ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

# Roles that pods may assume as well as machines: one service account of the EKS cluster each.
data "aws_iam_policy_document" "assume" {
  for_each                = { nodes = "firnline", mlflow = "mlflow" }
  source_policy_documents = [data.aws_iam_policy_document.assume_ec2.json]
  dynamic "statement" {
    for_each = local.oidc
    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]
      principals {
        type        = "Federated"
        identifiers = ["${local.arn}:iam::${local.account}:oidc-provider/${statement.value}"]
      }
      condition {
        test     = "StringEquals"
        variable = "${statement.value}:sub"
        values   = ["system:serviceaccount:${var.namespace}:${each.value}"]
      }
      condition {
        test     = "StringEquals"
        variable = "${statement.value}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_role" "nodes" {
  name               = "firnline-nodes"
  assume_role_policy = data.aws_iam_policy_document.assume["nodes"].json
}

resource "aws_iam_role_policy_attachment" "nodes_data" {
  role       = aws_iam_role.nodes.name
  policy_arn = aws_iam_policy.data.arn
}

resource "aws_iam_instance_profile" "nodes" {
  name = "firnline-nodes"
  role = aws_iam_role.nodes.name
}

resource "aws_iam_role" "head" {
  name               = "firnline-head"
  assume_role_policy = data.aws_iam_policy_document.assume_ec2.json
}

resource "aws_iam_role_policy_attachment" "head_data" {
  role       = aws_iam_role.head.name
  policy_arn = aws_iam_policy.data.arn
}

resource "aws_iam_role_policy_attachment" "head_scaling" {
  role       = aws_iam_role.head.name
  policy_arn = aws_iam_policy.scaling.arn
}

resource "aws_iam_instance_profile" "head" {
  name = "firnline-head"
  role = aws_iam_role.head.name
}
