output "index" {
  description = "The index that the nightly build serves."
  value       = "gs://${google_storage_bucket.index.name}/${var.index}"
}

output "repository" {
  description = "Where submit.sh pushes the image."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "worker" {
  description = "Service account that jobs run as."
  value       = google_service_account.worker.email
}
