# MLflow: a role for its artifacts, and (unless `mlflow` is false) a small machine that runs the server.
# Only Ray's machines reach it, at its private address. It has no SSH; look at its pages through Session Manager:
#   aws ssm start-session --target $(terraform output -raw mlflow_instance) \
#     --document-name AWS-StartPortForwardingSession --parameters portNumber=5000,localPortNumber=5000

data "aws_iam_policy_document" "artifacts" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.firnline.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["mlflow/*"]
    }
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.firnline.arn}/mlflow/*"]
  }
}

resource "aws_iam_policy" "artifacts" {
  name   = "firnline-mlflow-artifacts"
  policy = data.aws_iam_policy_document.artifacts.json
}

resource "aws_iam_role" "mlflow" {
  name               = "firnline-mlflow"
  assume_role_policy = data.aws_iam_policy_document.assume["mlflow"].json
}

resource "aws_iam_role_policy_attachment" "mlflow_artifacts" {
  role       = aws_iam_role.mlflow.name
  policy_arn = aws_iam_policy.artifacts.arn
}

resource "aws_iam_role_policy_attachment" "mlflow_session" {
  role       = aws_iam_role.mlflow.name
  policy_arn = "${local.arn}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "mlflow" {
  name = "firnline-mlflow"
  role = aws_iam_role.mlflow.name
}

data "aws_subnets" "ray" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.ray.id]
  }
}

resource "aws_security_group" "mlflow" {
  count       = var.mlflow ? 1 : 0
  name        = "firnline-mlflow"
  description = "MLflow for Ray's machines and nobody else"
  vpc_id      = data.aws_vpc.ray.id
}

resource "aws_vpc_security_group_ingress_rule" "mlflow" {
  count                        = var.mlflow ? 1 : 0
  security_group_id            = aws_security_group.mlflow[0].id
  referenced_security_group_id = aws_security_group.ray.id
  ip_protocol                  = "tcp"
  from_port                    = 5000
  to_port                      = 5000
}

resource "aws_vpc_security_group_egress_rule" "mlflow" {
  count             = var.mlflow ? 1 : 0
  security_group_id = aws_security_group.mlflow[0].id
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

data "aws_ssm_parameter" "image" {
  count = var.mlflow ? 1 : 0
  name  = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

resource "aws_instance" "mlflow" {
  count                       = var.mlflow ? 1 : 0
  ami                         = data.aws_ssm_parameter.image[0].value
  instance_type               = "t3.medium"
  subnet_id                   = var.mlflow_subnet == "" ? sort(data.aws_subnets.ray.ids)[0] : var.mlflow_subnet
  associate_public_ip_address = var.mlflow_public_address
  iam_instance_profile        = aws_iam_instance_profile.mlflow.name
  vpc_security_group_ids      = [aws_security_group.mlflow[0].id]

  metadata_options {
    http_tokens = "required"
  }

  # The database of the runs is on this volume: take snapshots of it, or use PostgreSQL (infra/mlflow).
  root_block_device {
    volume_type = "gp3"
    volume_size = 40
    encrypted   = true
  }

  lifecycle {
    ignore_changes = [ami]
  }

  user_data = <<-SCRIPT
    #!/bin/bash
    set -eu
    dnf install -y python3.11 python3.11-pip
    useradd --system --create-home mlflow
    sudo -u mlflow python3.11 -m venv /home/mlflow/venv
    sudo -u mlflow /home/mlflow/venv/bin/pip install 'mlflow==${var.mlflow_version}' boto3
    address=$(hostname -I | cut -d' ' -f1)
    cat > /etc/systemd/system/mlflow.service <<UNIT
    [Unit]
    Description=MLflow
    After=network-online.target
    [Service]
    User=mlflow
    WorkingDirectory=/home/mlflow
    ExecStart=/home/mlflow/venv/bin/mlflow server --host 0.0.0.0 --port 5000 --workers 2 \
      --allowed-hosts $address:5000,$(hostname):5000,localhost:5000,127.0.0.1:5000 \
      --backend-store-uri sqlite:////home/mlflow/mlflow.db --artifacts-destination s3://${aws_s3_bucket.firnline.id}/mlflow
    Restart=always
    [Install]
    WantedBy=multi-user.target
    UNIT
    systemctl daemon-reload
    systemctl enable --now mlflow
  SCRIPT
}
