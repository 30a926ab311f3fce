"""RVE-Dataset: from Ditto-1M and raw films to reason-informed triplets."""

from common.files import require_packages

require_packages("rvedata", "cv2", "openai", "scenedetect")
