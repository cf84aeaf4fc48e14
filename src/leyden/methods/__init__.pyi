from .adversarial_training import AdversarialTraining as AdversarialTraining
from .classification import Classification as Classification
from .convex_relu import ConvexReLU as ConvexReLU
from .language_modeling import LanguageModeling as LanguageModeling
from .regression import Regression as Regression
from .td_prediction import TDPrediction as TDPrediction
