"""stub"""
from torch.nn import Dropout
