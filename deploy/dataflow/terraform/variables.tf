variable "project" {
  description = "Id of the project that everything lives in."
  type        = string
}

variable "region" {
  description = "Region of the bucket, the images and the jobs; reading across regions costs money and time."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket to make, for the index and for what Dataflow stages."
  type        = string
}

variable "index" {
  description = "Folder of the index in the bucket."
  type        = string
  default     = "index"

  validation {
    condition     = !startswith(var.index, "dataflow") && !startswith(var.index, "templates") && !endswith(var.index, "/")
    error_message = "The index must lie beside dataflow/ and templates/, which are tidied up, and end without a slash."
  }
}

variable "image" {
  description = "The image that submit.sh pushed, with its tag or digest: REGION-docker.pkg.dev/PROJECT/grainhash/grainhash:TAG."
  type        = string
}

variable "images" {
  description = "Patterns of the catalogue's shards: gs://BUCKET/shards/*.tar and the like."
  type        = list(string)
}

variable "model" {
  description = "Folder of the model that encodes the catalogue, gs://BUCKET/model."
  type        = string
}

variable "read_buckets" {
  description = "Names of the buckets that the catalogue and the model are in; jobs may read them. Leave out the index's own."
  type        = list(string)
  default     = []
}

variable "schedule" {
  description = "When to build, in cron's notation."
  type        = string
  default     = "0 1 * * *"
}

variable "time_zone" {
  description = "Time zone of the schedule."
  type        = string
  default     = "Etc/UTC"
}

variable "machine_type" {
  description = "Machine of a worker. A process per core holds a model and a few work units: 4 GB per core do."
  type        = string
  default     = "n2-standard-4"
}

variable "max_workers" {
  description = "Most workers at once: the bound on money per hour. Dataflow starts fewer if there is less to do."
  type        = number
  default     = 20
}

variable "harness_threads" {
  description = "Work units that a worker process has in hand at once."
  type        = number
  default     = 2
}

variable "gpu" {
  description = "Kind of GPU per worker, such as nvidia-l4 (then machine_type g2-standard-8, and an image with requirements-gpu.txt); null for none."
  type        = string
  default     = null
}

variable "private_workers" {
  description = "Workers without public addresses; the subnetwork then needs Private Google Access."
  type        = bool
  default     = false
}

variable "more_parameters" {
  description = "More parameters of the build template, such as { labels = \"category,item\" }."
  type        = map(string)
  default     = {}
}

variable "keep_versions" {
  description = "Versions of the index that stay after a build is served; as many as readers may still be at work on."
  type        = number
  default     = 3

  validation {
    condition     = var.keep_versions >= 1
    error_message = "At least the served version stays."
  }
}

variable "keep_deleted_days" {
  description = "Days until an object that was deleted or overwritten is gone for good."
  type        = number
  default     = 7
}

variable "notification_channels" {
  description = "Names of the Cloud Monitoring channels that alerts go to."
  type        = list(string)
  default     = []
}
