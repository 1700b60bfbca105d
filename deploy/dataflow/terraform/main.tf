# What a nightly build on Dataflow needs: a bucket, an image repository, two service accounts, templates, a schedule.
# Alerts are in alerts.tf. The image is built and pushed by submit.sh before `terraform apply`, but for the first time.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

locals {
  dataflow  = "gs://${google_storage_bucket.index.name}/dataflow"
  templates = toset(["build", "query"])
  gpu       = var.gpu == null ? {} : { dataflow_service_options = "worker_accelerator=type:${var.gpu};count:1;install-nvidia-driver" }
}

resource "google_project_service" "needed" {
  for_each           = toset(["artifactregistry", "cloudscheduler", "compute", "dataflow", "logging", "monitoring"])
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

# The index, its versions, and what Dataflow stages. Versions of an index are removed by builds (`keep`) and `grainhash
# prune` alone: the rules here remove objects that were deleted or overwritten long ago, and what jobs have staged.
resource "google_storage_bucket" "index" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      with_state                 = "ARCHIVED"
      days_since_noncurrent_time = var.keep_deleted_days
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      with_state     = "LIVE"
      age            = 30
      matches_prefix = ["dataflow/tmp/", "dataflow/staging/"]
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }
}

resource "google_artifact_registry_repository" "images" {
  location      = var.region
  repository_id = "grainhash"
  format        = "DOCKER"
  description   = "Images of grainhash for Dataflow"

  docker_config {
    immutable_tags = true
  }

  depends_on = [google_project_service.needed]
}

# What launches jobs and does their work: it reads the catalogue and the image, and writes the one bucket.
resource "google_service_account" "worker" {
  account_id   = "grainhash-worker"
  display_name = "grainhash jobs on Dataflow"
}

resource "google_project_iam_member" "worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_index" {
  for_each = toset(["roles/storage.objectUser", "roles/storage.legacyBucketReader"])
  bucket   = google_storage_bucket.index.name
  role     = each.key
  member   = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_catalogue" {
  for_each = {
    for pair in setproduct(var.read_buckets, ["roles/storage.objectViewer", "roles/storage.legacyBucketReader"]) :
    join(" ", pair) => { bucket = pair[0], role = pair[1] }
  }
  bucket = each.value.bucket
  role   = each.value.role
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# What asks for a launch each night: it may create jobs that run as the worker, and read the templates.
resource "google_service_account" "scheduler" {
  account_id   = "grainhash-scheduler"
  display_name = "starts the nightly build of grainhash"
}

resource "google_project_iam_member" "scheduler" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.scheduler.member
}

resource "google_service_account_iam_member" "scheduler_as_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.scheduler.member
}

resource "google_storage_bucket_iam_member" "scheduler" {
  bucket = google_storage_bucket.index.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.scheduler.member

  condition {
    title      = "templates only"
    expression = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.index.name}/objects/templates/\")"
  }
}

# The templates: what `gcloud dataflow flex-template build` would write.
resource "google_storage_bucket_object" "template" {
  for_each     = local.templates
  bucket       = google_storage_bucket.index.name
  name         = "templates/${each.key}.json"
  content_type = "application/json"
  content = jsonencode({
    image    = var.image
    sdkInfo  = { language = "PYTHON" }
    metadata = jsondecode(file("${path.module}/../metadata-${each.key}.json"))
  })
}

# A job's name is unique while it runs: a build that takes longer than a day is not joined by a second one.
resource "google_cloud_scheduler_job" "build" {
  name        = "grainhash-build"
  description = "Builds the index anew and serves it"
  region      = var.region
  schedule    = var.schedule
  time_zone   = var.time_zone

  retry_config {
    retry_count = 3
  }

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }

    body = base64encode(jsonencode({
      launchParameter = {
        jobName              = "grainhash-build"
        containerSpecGcsPath = "gs://${google_storage_bucket.index.name}/${google_storage_bucket_object.template["build"].name}"
        parameters = merge(
          {
            index                            = "gs://${google_storage_bucket.index.name}/${var.index}"
            images                           = join(",", var.images)
            model                            = var.model
            keep                             = tostring(var.keep_versions)
            sdk_container_image              = var.image
            number_of_worker_harness_threads = tostring(var.harness_threads)
          },
          local.gpu,
          var.more_parameters,
        )
        environment = {
          serviceAccountEmail   = google_service_account.worker.email
          machineType           = var.machine_type
          maxWorkers            = var.max_workers
          tempLocation          = "${local.dataflow}/tmp"
          stagingLocation       = "${local.dataflow}/staging"
          ipConfiguration       = var.private_workers ? "WORKER_IP_PRIVATE" : "WORKER_IP_PUBLIC"
          additionalExperiments = var.gpu == null ? [] : ["no_use_multiple_sdk_containers"]
        }
      }
    }))

    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }

  depends_on = [google_project_service.needed]
}
